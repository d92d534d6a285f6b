"""`gptctl judge`: answers of models to a test file, scored by another model behind an OpenAI-compatible endpoint.

The trainer's own program writes the answers, in an interpreter that has torch. GPTCTL_HOME/judge keeps answers and
scores, each as soon as it is there: the same command resumes, and a model that was judged costs nothing again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.cli.inference.judge_scores import Answered, JudgeScores, Verdict, verdict_of
from orchestrator.cli.inference.local_checkpoint import folder_named, model_folder
from orchestrator.cli.inference.trainer_program import here, results
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen.tables import Column
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.formats import number
from orchestrator.ledger.ledger import Ledger
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.web.chat_completions import RemoteModel
from orchestrator.remote.whole_files import landing
from orchestrator.report.judged import Judged, judged
from trainer import run_files

FOLDER = "judge"
SAY_EVERY = 10


@dataclass(frozen=True)
class JudgeRequest:
    """What to judge, and by whom. `prompt`: the template of the instructions, None for the model's own."""

    test: Path
    endpoint: str
    judge: str
    key_variable: str
    prompt: str | None
    step: int | None
    max_tokens: int
    batch: int
    save: Path | None = None


@dataclass(frozen=True)
class Model:
    """A model to judge: a checkpoint of a run, or the folder you named."""

    name: str
    folder: Path
    run: str | None = None


def judge(runs: Sequence[str], request: JudgeRequest, *, as_json: bool) -> int:
    """Prints one table of all models, the best first, or `{"judge", "endpoint", "test", "models": [...]}`."""
    if not request.test.is_file():
        raise UserError(f"no such file: {request.test}", "name a JSON file with instruction, output and input")
    model = RemoteModel(request.endpoint, request.judge, os.environ.get(request.key_variable, ""))
    model.check(request.key_variable)
    verdicts, lines = [], []
    with open_ledger() as ledger:
        scores = JudgeScores(ledger.home / FOLDER, model)
        chosen = [_chosen(ledger, run, request.step) for run in (runs or (None,))]
        answers = [(each, _identity(each.folder), _answers(ledger, each, request)) for each in _told_apart(chosen)]
        for each, identity, answered in answers:
            found = _scored(each.name, answered, scores)
            verdicts.append(verdict_of(each.name, answered, found))
            _keep(ledger, each, identity, verdicts[-1], request)
            rows = zip(answered, found, strict=True)
            lines += [json.dumps({"model": each.name, **asdict(row), "score": score}) for row, score in rows]
    if request.save:
        with landing(request.save, mode=0o644) as target:
            target.write("".join(f"{line}\n" for line in lines).encode())
    _show(sorted(verdicts, key=_order), request, as_json=as_json)
    if not as_json:
        _say_kept(chosen)
    return 0


def _chosen(ledger: Ledger, run: str | None, step: int | None) -> Model:
    """What you named. `best` becomes the folder that it is now: it may move on while the judge is asked."""
    name, folder = model_folder(ledger, run, step)
    return Model(name, folder) if folder_named(run) else Model(name, folder.resolve(), ledger.find_run(run).id)


def _told_apart(chosen: Sequence[Model]) -> list[Model]:
    """Models of one name, such as checkpoints of one step, go by their folders."""
    names = [each.name for each in chosen]
    return [replace(each, name=str(each.folder)) if names.count(each.name) > 1 else each for each in chosen]


def _keep(ledger: Ledger, model: Model, identity: str, verdict: Verdict, request: JudgeRequest) -> None:
    """A run's scores, with the checkpoint that they are of. Those of a folder have no run that could keep them."""
    step = run_files.checkpoint_step(model.folder.name)
    if model.run is None or step is None or verdict.mean is None:
        return
    scores = Judged(
        test=request.test.name,
        test_sha256=hashlib.sha256(request.test.read_bytes()).hexdigest(),
        judge=request.judge,
        endpoint=request.endpoint.rstrip("/"),
        max_tokens=request.max_tokens,
        prompt=request.prompt,
        manifest_sha256=identity,
        mean=verdict.mean,
        deviation=verdict.deviation,
        scored=verdict.scored,
        unscored=verdict.unscored,
        cut=verdict.cut,
    )
    ledger.add_evaluation(judged(model.run, step, scores, time.time()))


def _say_kept(chosen: Sequence[Model]) -> None:
    from orchestrator.cli.screen import screen

    runs = list(dict.fromkeys(each.run for each in chosen if each.run))
    if runs:
        screen.talk(f"saved: gptctl compare {' '.join(runs)}, report and export show the scores")
    if any(each.run is None for each in chosen):
        screen.talk("scores of folders are not saved: gptctl import keeps a model with its scores")


def _order(verdict: Verdict) -> tuple[bool, float]:
    return verdict.mean is None, -(verdict.mean or 0.0)


def _scored(name: str, answered: Sequence[Answered], scores: JudgeScores) -> list[int | None]:
    from orchestrator.cli.screen import screen

    found: list[int | None] = []
    for each in answered:
        found.append(scores.score_of(each))
        if len(found) % SAY_EVERY == 0 or len(found) == len(answered):
            screen.talk(f"{name}: {len(found):,} of {len(answered):,} answers scored by {scores.judge.name}")
    return found


def _answers(ledger: Ledger, model: Model, request: JudgeRequest) -> list[Answered]:
    """The model's answers, kept line by line: the program writes those that are not there."""
    from orchestrator.cli.screen import screen

    settings = json.dumps([_identity(model.folder), request.prompt, request.max_tokens]).encode()
    known = hashlib.sha256(settings + request.test.read_bytes()).hexdigest()[:32]
    file = ledger.home / FOLDER / f"answers-{known}.jsonl"
    lines = _whole_lines(file)
    if not lines or len(lines) <= lines[0]["total"]:
        more = f", {len(lines) - 1:,} are there already" if len(lines) > 1 else ""
        screen.talk(f"{model.name}: answers {request.test.name}{more}")
        lines = _written(ledger, model.folder, request, file, lines)
    return [
        Answered(line["instruction"], line["input"], line["output"], line["answer"], line["cut"]) for line in lines[1:]
    ]


def _written(
    ledger: Ledger, folder: Path, request: JudgeRequest, file: Path, lines: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Runs the program; each of its lines is appended to the file as it arrives. Returns all lines."""
    shell = LocalShell()
    words = [str(folder), f"--test={request.test.absolute()}", f"--max-tokens={request.max_tokens}"]
    words += [f"--batch={request.batch}", f"--skip={max(0, len(lines) - 1)}"]
    words += [f"--prompt={request.prompt}"] if request.prompt else []
    with landing(file) as target:  # without a line that was cut off, and without lines of another kind
        target.write(b"".join(_line(each) for each in lines))
    with file.open("ab") as target:

        def keep(line: dict[str, Any]) -> None:
            if "answer" in line or not lines:
                lines.append(line)
                target.write(_line(line))
                target.flush()

        results(shell, here(ledger.home, shell, "inference.answers"), words, keep)
    if not lines or len(lines) != lines[0]["total"] + 1:
        raise CommandFailed("inference.answers: it did not answer every example", "run the command again")
    return lines


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """{"total"}, then the answers 0, 1, ... as far as they are whole; nothing where the file is not ours."""
    lines: list[dict[str, Any]] = []
    try:
        for raw in file.read_bytes().splitlines():
            line = json.loads(raw)
            if not (line["number"] == len(lines) - 1 and "answer" in line if lines else type(line["total"]) is int):
                break
            lines.append(line)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return lines


def _identity(folder: Path) -> str:
    """Which model it is: of a checkpoint its manifest, of another folder or file its place, sizes and times."""
    manifest = folder / run_files.MANIFEST_FILE
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    return json.dumps([[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def _show(verdicts: Sequence[Verdict], request: JudgeRequest, *, as_json: bool) -> None:
    from orchestrator.cli.screen import screen

    if as_json:
        rows = [asdict(verdict) for verdict in verdicts]
        named = {"judge": request.judge, "endpoint": request.endpoint, "test": request.test.name}
        print(json.dumps({**named, "models": rows}, indent=1))
        return
    columns = [Column("MODEL"), *(Column(name, right=True) for name in ("MEAN", "SD", "SCORED", "UNSCORED"))]
    table = [
        [each.model, number(each.mean, 1), number(each.deviation, 1), f"{each.scored:,}", f"{each.unscored:,}"]
        for each in verdicts
    ]
    screen.show_table(columns, table)
    screen.talk(f"scores from 0 to 100 by {request.judge}; SD is that of the answers, not of the mean")
    if cut := sum(each.cut for each in verdicts):
        screen.talk(f"{cut:,} prompts were longer than the model's context and lost their beginning")

"""`gptctl eval`: what a checkpoint scores on slices of tokens and on multiple choice, here or on the run's machine.

The trainer's own program measures, in an interpreter that has torch; this module imports nothing of it. Results go into
the ledger for compare, the report and the model card.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.agent.contract.names import JobName
from orchestrator.cli.inference.local_checkpoint import as_run, checkpoint_here, checkpoint_named, folder_named
from orchestrator.cli.inference.trainer_program import ProgramLine, failed, here, results, there
from orchestrator.cli.models import over_nodes
from orchestrator.cli.models.choices_files import choices_here
from orchestrator.cli.models.data_here import data_here
from orchestrator.cli.models.over_nodes import Node, measuring
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen.tables import Column
from orchestrator.core.errors import UserError
from orchestrator.core.events import Event
from orchestrator.core.facts.run_facts import DataOnMachine
from orchestrator.core.formats import loss, number, percent
from orchestrator.core.machines import machine_type
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Evaluation, RunRecord
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.report.evaluations import CHOICES, SLICE, from_line
from trainer import run_files

OF_SLICES = ("LOSS", "PERPLEXITY", "BITS/BYTE", "TOKENS")
OF_CHOICES = ("ACC", "ACC NORM", "ACC/TOKEN", "CHANCE", "QUESTIONS")


@dataclass(frozen=True)
class Wish:
    """What to measure. Without slices and choices: the recipe's, else what it validated on."""

    checkpoint: str
    slices: Sequence[str]
    data: Sequence[Path]
    choices: Sequence[str]
    """Files, their URIs, or names of NAMED_CHOICES."""
    precision: str | None
    batch_size: int
    files: Sequence[Path] = ()
    """The choices on this computer."""

    @property
    def measures_slices(self) -> bool:
        """Whether the loss is measured too: not where you typed choices alone."""
        return bool(self.slices or not self.choices)


def evaluate(run_id: str | None, wish: Wish, *, on_host: bool, as_json: bool) -> int:
    """Prints a table, or `{"run", "step", "evaluations": [...]}`."""
    name = checkpoint_named(wish.checkpoint)
    for file in () if on_host else wish.data:
        if not file.is_file():
            raise UserError(f"no such file: {file}")
    with open_ledger() as ledger:
        if folder := folder_named(run_id):
            return _of_folder(ledger, folder, wish, as_json=as_json)
        run = ledger.find_run(run_id)
        wish = replace(wish, files=choices_here(ledger.home, wish.choices or _choices(run, wish)))
        from orchestrator.cli.screen import screen

        if not on_host and _only_there(run, wish):
            screen.talk(f"its tokens are on {run.host}, not on this computer: measuring there, as with --on-host")
            on_host = True
        where = f"on {run.host}" if on_host else "here"
        screen.talk(f"measuring {name} of {run.id} {where}: {', '.join(_subjects(run, wish))}")
        work = _there if on_host else _here
        lines = work(ledger, run, wish, name)
        found = _kept(ledger, run, wish, lines)
    if as_json:
        _print_json(run.id, found)
        return 0
    _show(run, found)
    screen.talk(f"saved: gptctl report {run.id}, compare and export show the results")
    return 0


def _of_folder(ledger: Ledger, folder: Path, wish: Wish, *, as_json: bool) -> int:
    """Measures the model of a folder here, and keeps nothing: the ledger has no run of it."""
    from orchestrator.cli.screen import screen

    run = as_run(folder)
    if not wish.data and not wish.choices:
        raise UserError(f"{folder} has no tokens of its own", f"gptctl eval {folder} --data FILE, or --choices FILE")
    shell = LocalShell()
    wish = replace(wish, files=choices_here(ledger.home, wish.choices))
    data = [str(file.resolve()) for file in wish.data]
    arguments = [str(folder), *_arguments(run, wish, data, [*wish.files], "fp32")]
    lines = results(shell, here(ledger.home, shell, "evaluate"), arguments, _meter())
    found = _read(run, wish, lines)
    if as_json:
        _print_json(str(folder), found)
        return 0
    _show(run, found)
    screen.talk("not saved: gptctl import keeps a model with its results, for compare and export")
    return 0


def _print_json(name: str, found: Sequence[Evaluation]) -> None:
    rows = [{"step": each.step, "kind": each.kind, "name": each.name, **each.result} for each in found]
    print(json.dumps({"run": name, "step": found[0].step if found else None, "evaluations": rows}, indent=1))


def _choices(run: RunRecord, wish: Wish) -> Sequence[str]:
    """The recipe's, where you named nothing to measure."""
    typed = wish.slices or wish.data
    return () if typed else [str(name) for name in (run.recipe_data.get("eval") or {}).get("choices") or ()]


def _subjects(run: RunRecord, wish: Wish) -> list[str]:
    """What gptctl is about to measure, in words: it may take minutes."""
    files = [f"choices {file.name}" for file in wish.files]
    if not wish.measures_slices:
        return files
    known = _data_of(run)
    own = "its validation data" if known.validation_files else "its training data"
    data = wish.data[0].name if wish.data else own
    slices = [f"slice {start}+{tokens} of {data}" for start, tokens in _slices(run, wish)]
    return files + (slices or [f"all of {data}" if wish.data else f"the held-out end of {data}"])


def _data_of(run: RunRecord) -> DataOnMachine:
    """The tokens it trains on; none before they are on the machine."""
    return run.facts.synced.data if run.facts.synced else DataOnMachine(())


def _show(run: RunRecord, found: Sequence[Evaluation]) -> None:
    """A table with the columns that have something in them, then what they mean."""
    from orchestrator.cli.screen import screen

    kinds = {each.kind for each in found}
    numbers = (*(OF_SLICES if SLICE in kinds else ()), *(OF_CHOICES if CHOICES in kinds else ()))
    rows = [[f"{each.step:,}", f"{each.kind} {each.name}", *_cells(each, numbers)] for each in found]
    screen.show_table(
        [Column("STEP", True), Column("WHAT"), *(Column(name, True, at) for at, name in enumerate(numbers))], rows
    )
    for each in found:
        asked, measured = (each.result.get("slice") or (0, 0))[1], each.result.get("tokens") or 0
        if asked - measured >= run.recipe_data["model"].get("context_length", 1):
            screen.talk(f"{each.kind} {each.name}: the data holds only {measured:,} of these tokens")
    if SLICE in kinds:
        screen.talk("LOSS is in nats per token, lower is better; PERPLEXITY is e to the loss")
    if CHOICES in kinds:
        screen.talk("ACC picks the likeliest ending; ACC NORM the likeliest per byte, ACC/TOKEN per token")


def _here(ledger: Ledger, run: RunRecord, wish: Wish, name: str) -> list[ProgramLine]:
    folder = checkpoint_here(ledger.home, run.id, name)
    data = _data_here(run, wish) if wish.measures_slices else []
    arguments = [str(folder), *_arguments(run, wish, [str(file) for file in data], [*wish.files], "fp32")]
    shell = LocalShell()
    return results(shell, here(ledger.home, shell, "evaluate"), arguments, _meter())


def _only_there(run: RunRecord, wish: Wish) -> bool:
    """Whether the tokens are on a machine of your own, which is still there to measure on, and not here."""
    needs_tokens = not wish.data and wish.measures_slices
    own = run.host_data.get("provider") == "ssh" and run.facts.synced is not None
    return bool(needs_tokens and own and data_here(run) is None)


def _data_here(run: RunRecord, wish: Wish) -> list[Path]:
    """The named files, else those the run validated or trained on, if they are on this computer."""
    if wish.data:
        return [file.resolve() for file in wish.data]
    if run.outcome is Outcome.IMPORTED:
        raise UserError(f"{run.id} is imported: it has no tokens of its own", f"gptctl eval {run.id} --data FILE")
    files = data_here(run)
    if files is None:
        raise UserError(
            f"{run.id}: its tokens are on {run.host}, not on this computer",
            f"gptctl eval {run.id} --on-host, or --data FILE with the same tokens",
        )
    return files


def _there(ledger: Ledger, run: RunRecord, wish: Wish, name: str) -> list[ProgramLine]:
    """Runs as a job of the machine's agent: it takes minutes, and the same request again joins it."""
    if run.state is State.TRAINING:
        raise UserError(
            f"{run.id} is training: measuring beside it could run out of memory",
            f"gptctl fetch {run.id}, then gptctl eval {run.id} here",
        )
    with measuring(ledger, run, there(run, "evaluate")) as nodes:
        agent = nodes[0].agent
        step = _step_there(agent, run, name)
        argvs = [_argv_there(run, wish, node, step) for node in nodes]
        digest = hashlib.sha256(json.dumps(argvs).encode()).hexdigest()[:16]
        for number in reversed(range(len(nodes))):  # the head comes last: its end is waited for
            spec = over_nodes.spec(run, nodes, number, argvs[number], digest)
            nodes[number].agent.start(JobName.EVALUATE, run.id, digest, spec)
        lines: list[ProgramLine] = []
        show = _meter()

        def hear(line: ProgramLine) -> None:
            lines.append(line)
            show(line)

        ended = agent.wait(run.id, JobName.EVALUATE, hear, digest)
    if ended["outcome"] != run_files.OUTCOME_FINISHED:
        explained = [f"evaluate: {line['reason']}" for line in lines if line.get("kind") == "failed"]
        words = explained or [str(ended.get("reason") or ""), *map(str, ended.get("last_lines") or ())]
        raise failed("evaluate", "\n".join(words))
    return lines


def _argv_there(run: RunRecord, wish: Wish, node: Node, step: str) -> list[str]:
    """The command line on a node. A path that you name is a path on each machine."""
    folder = f"{node.agent.root}/runs/{run.id}/{run_files.CHECKPOINTS}/{step}"
    choices = [_sent(node.agent, file) for file in wish.files]
    usual = str(run.recipe_data["train"]["precision"]) if machine_type(run.machine).cuda else "fp32"
    words = [folder, *_arguments(run, wish, [str(file) for file in wish.data], choices, usual)]
    return [node.program.python, "-m", "trainer.evaluate", *words]


def _step_there(agent: Agent, run: RunRecord, name: str) -> str:
    """The folder that `best` or `latest` means now: the job's input must not change its meaning."""
    for found in agent.manifest(run.id):
        if name == found.name or (name == run_files.BEST and found.best) or (name == run_files.LATEST and found.latest):
            return found.name
    raise UserError(f"{run.id}: {name} is not on {run.host}", f"gptctl eval {run.id} --checkpoint best")


def _sent(agent: Agent, file: Path) -> Path:
    """Copies a file of choices to the machine, named by its content; once."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    target = f"{agent.root}/eval/{digest}/{file.name}"
    agent.shell.put(file, target)
    return Path(target)


def _arguments(run: RunRecord, wish: Wish, data: Sequence[str], choices: Sequence[Path], usual: str) -> list[str]:
    """Of `trainer.evaluate`, after the checkpoint."""
    words = [f"--batch-size={wish.batch_size}", "--precision", wish.precision or usual]
    for file in choices:
        words += ["--choices", str(file.resolve())]
    if not wish.measures_slices:
        return words
    for start, tokens in _slices(run, wish):
        words += ["--slice", str(start), str(tokens)]
    known = _data_of(run)
    if "--slice" not in words and not wish.data and not known.validation_files:
        words += ["--held-out", str(known.validation_tokens)]
    return [*words, *(["--data", *data] if data else [])]


def _slices(run: RunRecord, wish: Wish) -> list[tuple[int, int]]:
    """What was typed, else the recipe's, else what the run validated on; none: the whole of the data."""
    if wish.slices:
        return [_slice(text) for text in wish.slices]
    if wish.data:
        return []
    recipe, known = run.recipe_data.get("eval") or {}, _data_of(run)
    if recipe.get("slices"):
        return [(int(start), int(tokens)) for start, tokens in recipe["slices"]]
    if known.validation_files and known.validation_tokens:
        return [(known.validation_start_token, known.validation_tokens)]
    return []


def _slice(text: str) -> tuple[int, int]:
    start, _, tokens = text.replace("_", "").partition("+")
    if not (start.isascii() and start.isdigit() and tokens.isascii() and tokens.isdigit() and int(tokens)):
        raise UserError(f"--slice {text}: must be START+TOKENS, such as 50_000_000+19_660_800")
    return int(start), int(tokens)


def _meter() -> Callable[[ProgramLine], None]:
    """Shows the program's progress lines; the results come at the end."""
    from orchestrator.cli.screen.live_view import progress_line

    def show(line: ProgramLine) -> None:
        if "progress" in line:
            from orchestrator.cli.screen import screen

            event = Event("progress", 0.0, data={**line, "what": line["progress"]})
            screen.talk(progress_line(event.data))

    return show


def _kept(ledger: Ledger, run: RunRecord, wish: Wish, lines: Sequence[ProgramLine]) -> list[Evaluation]:
    """The results, each in the ledger."""
    found = _read(run, wish, lines)
    for each in found:
        ledger.add_evaluation(each)
    return found


def _read(run: RunRecord, wish: Wish, lines: Sequence[ProgramLine]) -> list[Evaluation]:
    """The results. Other data than the run's own are named with their first file."""
    step = next((line["step"] for line in lines if line.get("kind") == "checkpoint"), None)
    if not isinstance(step, int):
        raise UserError(f"{run.id}: its checkpoint does not name its step")
    found = {}
    for line in lines:
        each = from_line(run.id, step, line, time.time())
        if each is None:
            continue
        if each.kind == SLICE and wish.data:
            name = f"{wish.data[0].name}:{each.name}"
            each = Evaluation(run.id, step, SLICE, name, each.measured_at, each.loss, each.result)
        found[each.kind, each.name] = each  # a broken link can repeat a line
    return list(found.values())


def _cells(each: Evaluation, columns: Sequence[str]) -> list[str]:
    result = each.result
    shown = {
        "LOSS": loss(each.loss),
        "PERPLEXITY": number(result.get("perplexity"), 2),
        "BITS/BYTE": number(result.get("bits_per_byte"), 4),
        "TOKENS": number(result.get("tokens")),
        "ACC": percent(result.get("accuracy")),
        "ACC NORM": percent(result.get("accuracy_norm")),
        "ACC/TOKEN": percent(result.get("accuracy_per_token")),
        "CHANCE": percent(result.get("chance")),
        "QUESTIONS": number(result.get("questions")),
    }
    return [shown[column] for column in columns]

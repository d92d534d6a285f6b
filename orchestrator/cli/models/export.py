"""`gptctl export`: a checkpoint of a run as a folder that others can load, with its model card.

The trainer's own program writes the tensors, in an interpreter that has numpy; this module writes the card from the
ledger and the mirrored files. Both arrive together.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.models.push import Target, check, push
from orchestrator.cli.models.space import write_space
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.facts.run_facts import DatasetFacts
from orchestrator.core.formats import duration, size
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.core.suggest import one_of
from orchestrator.core.typed_json import parse
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.report.card import card
from orchestrator.report.card.checkpoint_meta import CheckpointMeta
from orchestrator.report.card.provenance import eval_results, is_import
from orchestrator.report.evaluations import table
from orchestrator.report.judged import of_these
from orchestrator.report.lineage import ancestors
from orchestrator.report.local_checkpoints import read_checkpoints
from orchestrator.report.metrics import Training, read_training
from orchestrator.report.pages.curves import training_charts
from orchestrator.report.redaction import shown_recipe
from orchestrator.report.summary import Records, collect
from orchestrator.runs.own_version import made_by
from trainer import contract, run_files

FORMATS = ("hf", "gguf", "safetensors", "adapters")
DTYPES = ("fp32", "bf16", "fp16")
CARD = "README.md"
LICENSE_PATTERN = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
LANGUAGE_PATTERN = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|code|multilingual")
DEADLINE_S = 1800.0
NEEDS = {"hf": "import numpy, safetensors", "gguf": "import numpy, safetensors, gguf"}
PROGRAM = """\
import sys
sys.path.append(sys.argv.pop(1))
from trainer.export import main
from orchestrator.core.typed_json import parse
sys.exit(main(sys.argv[1:]))
"""
"""The trainer's folder comes last on the path: where it is a site-packages, the interpreter's own numpy must win."""


@dataclass(frozen=True)
class Wish:
    """What to export, in which format, and where to."""

    kind: str = "hf"
    to: Path | None = None
    checkpoint: str = run_files.BEST
    tokenizer: str | None = None
    license: str | None = None
    language: str | None = None
    push: str | None = None
    public: bool = False
    revision: str | None = None
    dtype: str = "fp32"
    author: str | None = None
    links: Sequence[str] = ()
    space: bool = False

    @property
    def target(self) -> Target | None:
        """The repository of --push."""
        return None if self.push is None else Target(self.push, self.revision, self.public)


def export(run_id: str | None, wish: Wish, *, yes: bool, as_json: bool) -> int:
    """Prints the folder and its files, or `{"run", "step", "to", "format", "files", "pushed", ...}`."""
    _check(wish)
    with open_ledger() as ledger:
        run = ledger.find_run(run_id)
        done = make_folder(ledger, run, wish)
    if wish.space:
        done["space"] = str(write_space(Path(f"{done['to']}-space"), run.recipe, wish.push, Path(done["to"])))
        screen.talk(f"a Gradio demo: {done['space']}")
    if wish.target is not None:
        done["pushed"] = _push(wish.target, done, yes=yes)
    if as_json:
        print(json.dumps(done, indent=1))
        return 0
    for name, entry in done["files"].items():
        print(f"{size(entry['size_bytes']):>10}  {name}")
    print(done["to"])
    if done.get("pushed"):
        print(done["pushed"]["url"])
    _say(done, wish)
    return 0


def _push(target: Target, done: Mapping[str, Any], *, yes: bool) -> dict[str, Any] | None:
    folder = Path(done["to"])
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    message = f"{done['run']}, step {done['step']}, by {made_by()}"
    pushed = push(target, folder, sizes, yes=yes, message=message)
    if pushed is None:
        screen.talk(f"nothing was uploaded; the export is in {folder}")
    return pushed


def _check(wish: Wish) -> None:
    if wish.target is not None:
        check(wish.target)
    elif wish.public or wish.revision:
        raise UserError("--public and --revision need --push", "add --push OWNER/NAME")
    if wish.kind not in FORMATS:
        raise UserError(f"--format {wish.kind}: must be {one_of(FORMATS)}", "gptctl export --help")
    if wish.dtype not in DTYPES:
        raise UserError(f"--dtype {wish.dtype}: must be {one_of(DTYPES)}", "gptctl export --help")
    if wish.dtype != "fp32" and wish.kind == "safetensors":
        raise UserError("--dtype: --format safetensors is the checkpoint as it is", "omit --dtype, or give --format hf")
    for link in wish.links:
        if not re.fullmatch(r"[^=]+=https?://[^\s<>]+", link):
            raise UserError(f"--link {link}: must be TITLE=URL", "for example --link Code=https://github.com/me/it")
    if wish.license is not None and not LICENSE_PATTERN.fullmatch(wish.license):
        raise UserError(
            f"--license {wish.license}: must be a licence id of the Hub", "for example apache-2.0, mit or cc-by-4.0"
        )
    if wish.language is not None and not LANGUAGE_PATTERN.fullmatch(wish.language):
        raise UserError(f"--language {wish.language}: must be a language code", "for example en, de or code")


def _say(done: Mapping[str, Any], wish: Wish) -> None:
    zeros = done["zero_biases"]
    if zeros:
        screen.talk(f"GPT-2's class has biases that this model does not have: {zeros:,} zeros stand for them")
    if wish.license is None:
        screen.talk("the card states no licence; add one with --license, for example --license apache-2.0")
    screen.talk(f"step {done['step']}, {done['parameters']:,} parameters, in {duration(done['seconds'])}")


def make_folder(ledger: Ledger, run: RunRecord, wish: Wish) -> dict[str, Any]:
    """Exports and returns what the program said, with the run. Raises UserError, CommandFailed."""
    checkpoint = checkpoint_here(ledger.home / "runs" / run.id, run.id, wish.checkpoint)
    to = (wish.to or Path("exports") / run.id).expanduser().absolute()
    shell = LocalShell()
    python = _interpreter(ledger.home, shell, wish.kind)
    source = str(Path(contract.__file__).parent.parent)
    with tempfile.TemporaryDirectory(prefix="gptctl-export-") as folder:
        write_companions(ledger, run, checkpoint, wish, Path(folder))
        arguments = [str(checkpoint), "--format", wish.kind, "--to", str(to), "--companions", folder]
        arguments += ["--dtype", wish.dtype]
        tokenizer = ["--tokenizer", wish.tokenizer] if wish.tokenizer else []
        said = _run(shell, [python, "-c", PROGRAM, source, *arguments, *tokenizer])
    return {"run": run.id, **{key: value for key, value in said.items() if key != "event"}}


def checkpoint_here(mirror: Path, run_id: str, wanted: str) -> Path:
    """The folder of a step, `best` or `latest`. For a run that never validated, `best` is its latest."""
    folder = mirror / run_files.CHECKPOINTS
    if wanted in (run_files.BEST, run_files.LATEST):
        names = [wanted, run_files.LATEST]
    elif wanted.isascii() and wanted.isdigit():
        names = [run_files.checkpoint_name(int(wanted))]
    else:
        raise UserError(f"--step {wanted}: must be a number, best or latest", "gptctl export --help")
    found = next((folder / name for name in names if (folder / name).is_dir()), None)
    if found is None:
        here = ", ".join(sorted(path.name for path in folder.glob("step-*"))) if folder.is_dir() else ""
        more = f" --step {wanted}" if wanted.isdigit() else ""
        raise UserError(
            f"{run_id}: checkpoint {wanted} is not here (here: {here or 'none'})", f"gptctl fetch {run_id}{more}"
        )
    return found.resolve()


def write_companions(ledger: Ledger, run: RunRecord, checkpoint: Path, wish: Wish, to: Path) -> None:
    """The card with its chart, and the recipe that trains it again."""
    mirror = ledger.home / "runs" / run.id
    intervals = ledger.intervals(run.id)
    meta = _meta(checkpoint)
    host = HostSpec.from_resolved(run.host_data) if run.host_data else None
    spent = run_cost(intervals, machine=machine_type(run.machine), tokens=run.tokens_trained, host=host)
    training, records = read_training(mirror), Records(ledger.evaluations(run.id), ancestors=ancestors(run, ledger.run))
    rows = table(of_these(records.evaluations, read_checkpoints(mirror / run_files.CHECKPOINTS)))
    exported = card.Exported(run, meta, run.facts.dataset or DatasetFacts(), rows, records.ancestors)
    chart = _chart(training, to, run.id)
    region = ledger.rental(run.rental_id).facts.region if run.rental_id else None
    chosen = card.Wish(
        wish.kind, wish.license, wish.language, wish.push, chart, made_by(), wish.author, wish.links, region
    )
    page = card.model_card(exported, collect(run, intervals, spent, mirror, records=records, training=training), chosen)
    (to / CARD).write_text(page, encoding="utf-8", newline="\n")
    for each in (*records.ancestors, run):
        if not is_import(each):
            text = shown_recipe(each.recipe_data)
            (to / card.recipe_file(each, run)).write_text(text, encoding="utf-8", newline="\n")
    for name, text in eval_results(meta.step, rows, run).items():
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_text(text, encoding="utf-8", newline="\n")


def _chart(training: Training, to: Path, title: str) -> str | None:
    """The file's name; None without a curve, or without matplotlib."""
    losses = [each for each in training_charts(training) if each.key == "loss"]
    if not losses:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        screen.talk("the card has no loss chart; it needs: pip install 'gptctl[charts]'")
        return None
    # Only now: without the extra, everything else of an export still works.
    from orchestrator.report.pages.image_files import draw

    return draw(losses, to, title, kinds=("png",))[0].name


def _meta(checkpoint: Path) -> CheckpointMeta:
    try:
        return CheckpointMeta.from_json(parse((checkpoint / run_files.META_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{checkpoint.name}: {run_files.META_FILE} does not describe a model of this gptctl ({clean(str(error))})",
            "fetch the checkpoint again, or export it with the gptctl that trained it",
        ) from error


def _interpreter(home: Path, shell: LocalShell, kind: str) -> str:
    """A Python here that has what an export needs: this one, or one that trained on host `local`. No torch."""
    if shell.run([sys.executable, "-c", NEEDS.get(kind, NEEDS["hf"])], deadline_s=60).code == 0:
        return sys.executable
    if kind == "gguf":
        raise UserError("this Python has no package gguf", f"{sys.executable} -m pip install 'gptctl[gguf,trainer]'")
    facts = Agent(shell, str(home / "machine"), sys.executable).facts(sys.executable)
    able = [str(each["path"]) for each in facts["interpreters"] if each.get("trainer")]
    if not able:
        raise UserError(
            "no Python here has numpy and safetensors", f"{sys.executable} -m pip install 'gptctl[trainer]'"
        )
    return able[0]


def _run(shell: LocalShell, argv: Sequence[str]) -> dict[str, Any]:
    result = shell.run(argv, deadline_s=DEADLINE_S)
    if result.code != 0:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"code {result.code}"]
        words = clean(said[0])
        if words.startswith("export: "):  # its own words: it cannot do what you asked for
            raise UserError(words, "gptctl export --help")
        raise CommandFailed(f"export failed: {words}", "gptctl check shows what is wrong with this Python")
    return dict(parse(result.stdout.splitlines()[-1]))

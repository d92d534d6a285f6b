"""`gptctl sample`: lets a trained model write, here from a fetched checkpoint, or on the run's machine.

The trainer's own program writes, in an interpreter that has torch; this module imports nothing of it. The texts go into
the ledger for the report and the model card.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.cli.connections import agent_of
from orchestrator.cli.inference.local_checkpoint import checkpoint_here, folder_named
from orchestrator.cli.inference.trainer_program import ProgramLine, here, results, there
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen.foreign import clean
from orchestrator.core.formats import number
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.report.evaluations import sampled
from trainer import run_files

OnLine = Callable[[ProgramLine], None]


@dataclass(frozen=True)
class SampleRequest:
    """What to write: `batch` texts per prompt, `tokens` more tokens each."""

    prompts: Sequence[str]
    step: int | None
    tokens: int
    temperature: float
    seed: int
    top_k: int | None = None
    top_p: float | None = None
    batch: int = 1

    def arguments(self, checkpoint: str) -> list[str]:
        """Of `trainer.sample`."""
        numbers = {"tokens": self.tokens, "temperature": self.temperature, "seed": self.seed, "batch": self.batch}
        filters = {"top-k": self.top_k, "top-p": self.top_p}
        given = {**numbers, **{name: value for name, value in filters.items() if value is not None}}
        words = [f"--{name}={value}" for name, value in given.items()]
        return [checkpoint, *(f"--prompt={prompt}" for prompt in self.prompts), *words, "--json", "--stream"]


def sample(run_id: str | None, request: SampleRequest, *, on_host: bool, as_json: bool) -> int:
    """Prints prompt and text of each sample, or `{"run", "checkpoint", "samples": [...]}`. Of a folder, `run` is null
    and the ledger keeps nothing."""
    folder = folder_named(run_id)
    show = _nothing if as_json else Screen().show
    with open_ledger() as ledger:
        if folder is not None:
            run, checkpoint = None, str(folder)
            samples = _here(ledger, checkpoint, request, show)
        else:
            run = ledger.find_run(run_id)
            checkpoint, samples = _of_run(ledger, run, request, show, on_host=on_host)
            _keep(ledger, run, request, checkpoint, samples)
    if as_json:
        print(json.dumps({"run": run.id if run else None, "checkpoint": checkpoint, "samples": samples}, indent=1))
    else:
        _say_rate(samples)
    return 0


class Screen:
    """Prints a text as it is written, or whole where it comes whole: of several at once."""

    def __init__(self) -> None:
        self.prompt: str | None = None

    def show(self, line: ProgramLine) -> None:
        """A line of `trainer.sample`."""
        text = line.get("text")
        if "piece" in line:
            begin = "" if self.prompt is not None else clean(str(line["prompt"]))
            self.prompt = str(line["prompt"])
            print(begin + clean(str(line["piece"])), end="", flush=True)
        elif text is not None:
            print("" if self.prompt is not None else clean(str(text)), end="\n\n", flush=True)
            self.prompt = None


def _nothing(line: ProgramLine) -> None:
    """--json prints at the end."""


def _say_rate(samples: Sequence[ProgramLine]) -> None:
    from orchestrator.cli.screen import screen

    tokens = sum(each.get("tokens") or 0 for each in samples)
    rates = [each["tokens_per_second"] for each in samples if each.get("tokens_per_second")]
    if rates:
        screen.talk(f"{tokens:,} tokens, {number(statistics.mean(rates), 1)} tok/s")


def _of_run(
    ledger: Ledger, run: RunRecord, request: SampleRequest, show: OnLine, *, on_host: bool
) -> tuple[str, list[ProgramLine]]:
    """The checkpoint's folder, here or on the run's machine, and its samples."""
    if on_host:
        program = there(run, "sample")
        with agent_of(ledger, run) as agent:
            folder = f"{agent.root}/runs/{run.id}/{run_files.CHECKPOINTS}/{_name(request.step)}"
            return folder, _texts(results(agent.shell, program, request.arguments(folder), show))
    folder = str(checkpoint_here(ledger.home, run.id, _name(request.step)))
    return folder, _here(ledger, folder, request, show)


def _here(ledger: Ledger, folder: str, request: SampleRequest, show: OnLine) -> list[ProgramLine]:
    shell = LocalShell()
    return _texts(results(shell, here(ledger.home, shell, "sample"), request.arguments(folder), show))


def _texts(lines: Sequence[ProgramLine]) -> list[ProgramLine]:
    """Without the pieces, which are in them."""
    return [line for line in lines if "text" in line]


def _keep(
    ledger: Ledger, run: RunRecord, request: SampleRequest, checkpoint: str, samples: Sequence[ProgramLine]
) -> None:
    """Saves samples of a checkpoint whose step is known: `best` on a machine may be another one tomorrow."""
    step = run_files.checkpoint_step(Path(checkpoint).resolve().name) if request.step is None else request.step
    asked = {key: value for key, value in asdict(request).items() if key not in ("prompts", "step")}
    settings = {key: value for key, value in asked.items() if value is not None}
    if step is None:
        return
    for place, each in enumerate(samples):
        of_batch = {"number": place % request.batch} if request.batch > 1 else {}
        kept = {"prompt": each["prompt"], **settings, **of_batch, "text": each["text"]}
        ledger.add_evaluation(sampled(run.id, step, kept, time.time()))


def _name(step: int | None) -> str:
    return run_files.BEST if step is None else run_files.checkpoint_name(step)

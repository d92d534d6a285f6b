"""`gptctl sample`: lets a trained model write, here from a fetched checkpoint, or on the run's machine.

The trainer's own program writes, in an interpreter that has torch; this module imports nothing of it. The texts go into
the ledger for the report and the model card.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.connections import agent_of
from orchestrator.cli.models.local_checkpoint import checkpoint_here
from orchestrator.cli.models.trainer_program import here, results, there
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen.foreign import clean
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.report.evaluations import sampled
from trainer import contract


@dataclass(frozen=True)
class SampleRequest:
    """What to write: one text per prompt, `tokens` more tokens each."""

    prompts: Sequence[str]
    step: int | None
    tokens: int
    temperature: float
    seed: int

    def arguments(self, checkpoint: str) -> list[str]:
        """Of `trainer.sample`."""
        numbers = ("--tokens", str(self.tokens), "--temperature", str(self.temperature), "--seed", str(self.seed))
        return [checkpoint, *(f"--prompt={prompt}" for prompt in self.prompts), *numbers, "--json"]


def sample(run_id: str | None, request: SampleRequest, *, on_host: bool, as_json: bool) -> int:
    """Prints prompt and text of each sample, or `{"run", "checkpoint", "samples": [...]}`."""
    with open_ledger() as ledger:
        run = ledger.find_run(run_id)
        checkpoint, samples = _there(ledger, run, request) if on_host else _here(ledger, run, request)
        _keep(ledger, run, request, checkpoint, samples)
    if as_json:
        print(json.dumps({"run": run.id, "checkpoint": checkpoint, "samples": samples}, indent=1))
        return 0
    for each in samples:
        print(clean(each["text"]), end="\n\n", flush=True)
    return 0


def _here(ledger: Ledger, run: RunRecord, request: SampleRequest) -> tuple[str, list[dict[str, Any]]]:
    folder = str(checkpoint_here(ledger.home, run.id, _name(request.step)))
    shell = LocalShell()
    program = here(ledger.home, shell, "sample")
    return folder, results(shell, program, request.arguments(folder), lambda line: None)


def _there(ledger: Ledger, run: RunRecord, request: SampleRequest) -> tuple[str, list[dict[str, Any]]]:
    program = there(run, "sample")
    with agent_of(ledger, run) as agent:
        folder = f"{agent.root}/runs/{run.id}/{contract.CHECKPOINTS}/{_name(request.step)}"
        return folder, results(agent.shell, program, request.arguments(folder), lambda line: None)


def _keep(
    ledger: Ledger, run: RunRecord, request: SampleRequest, checkpoint: str, samples: Sequence[dict[str, Any]]
) -> None:
    """Saves samples of a checkpoint whose step is known: `best` on a machine may be another one tomorrow."""
    step = contract.checkpoint_step(Path(checkpoint).resolve().name) if request.step is None else request.step
    settings = {key: value for key, value in asdict(request).items() if key not in ("prompts", "step")}
    if step is None:
        return
    for each in samples:
        kept = {"prompt": each["prompt"], **settings, "text": each["text"]}
        ledger.add_evaluation(sampled(run.id, step, kept, time.time()))


def _name(step: int | None) -> str:
    return contract.BEST if step is None else contract.checkpoint_name(step)

"""`gptctl sample`: a trained model writes, here from a fetched checkpoint, or on the run's machine.

The writing is done by the trainer's own program in an interpreter that has torch; nothing of it is imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.home import open_ledger
from orchestrator.cli.reach import agent_of
from orchestrator.cli.words import clean
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.ports import Shell
from orchestrator.ledger.records import RunRecord
from orchestrator.ledger.store import Ledger
from orchestrator.remote.agent import Agent
from orchestrator.remote.local import LocalShell
from trainer import contract

DEADLINE_S = 900.0
PROGRAM = """\
import sys
sys.path.append(sys.argv.pop(1))
from trainer.sample import main
sys.exit(main(sys.argv[1:]))
"""
"""The trainer's folder comes last on the path: where it is a site-packages, the interpreter's own torch must win."""


@dataclass(frozen=True)
class Wanted:
    """What to write: one text per prompt, `tokens` more tokens each."""

    prompts: Sequence[str]
    step: int | None
    tokens: int
    temperature: float
    seed: int

    def arguments(self, checkpoint: str) -> list[str]:
        """Of `trainer.sample`."""
        numbers = ("--tokens", str(self.tokens), "--temperature", str(self.temperature), "--seed", str(self.seed))
        return [checkpoint, *(word for prompt in self.prompts for word in (f"--prompt={prompt}",)), *numbers, "--json"]


def sample(run_id: str | None, wanted: Wanted, *, on_host: bool, as_json: bool) -> int:
    """Prints prompt and text of each sample, or `{"run", "checkpoint", "samples": [...]}`."""
    with open_ledger() as ledger:
        run = ledger.find_run(run_id)
        checkpoint, samples = _there(ledger, run, wanted) if on_host else _here(ledger, run, wanted)
    if as_json:
        print(json.dumps({"run": run.id, "checkpoint": checkpoint, "samples": samples}, indent=1))
        return 0
    for each in samples:
        print(clean(each["text"]), end="\n\n", flush=True)
    return 0


def _here(ledger: Ledger, run: RunRecord, wanted: Wanted) -> tuple[str, list[dict[str, Any]]]:
    folder = ledger.home / "runs" / run.id / contract.CHECKPOINTS / _name(wanted.step)
    if not folder.is_dir():
        step = f" --step {wanted.step}" if wanted.step is not None else ""
        raise UserError(f"{run.id}: {folder.name} is not here", f"gptctl fetch {run.id}{step}, or --on-host")
    shell = LocalShell()
    python = _interpreter(ledger.home, shell)
    source = str(Path(contract.__file__).parent.parent)
    return str(folder), _write(shell, python, source, wanted.arguments(str(folder)))


def _there(ledger: Ledger, run: RunRecord, wanted: Wanted) -> tuple[str, list[dict[str, Any]]]:
    python, source = run.options.get("python"), run.options.get("source")
    if not python or not source:
        raise UserError(f"{run.id} has not come far enough to have a trainer on {run.host}", f"gptctl resume {run.id}")
    with agent_of(ledger, run) as agent:
        folder = f"{agent.root}/runs/{run.id}/{contract.CHECKPOINTS}/{_name(wanted.step)}"
        return folder, _write(agent.shell, python, source, wanted.arguments(folder))


def _name(step: int | None) -> str:
    return contract.BEST if step is None else contract.checkpoint_name(step)


def _interpreter(home: Path, shell: Shell) -> str:
    """A Python here that has all the trainer needs: this one, or an environment that a run on host `local` built."""
    facts = Agent(shell, str(home / "machine"), sys.executable).facts(sys.executable)
    able = [str(each["path"]) for each in facts["interpreters"] if each.get("trainer")]
    if not able:
        raise UserError("no Python here has torch", f"{sys.executable} -m pip install 'gptctl[trainer]', or --on-host")
    return able[0]


def _write(shell: Shell, python: str, source: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    result = shell.run([python, "-c", PROGRAM, source, *arguments], deadline_s=DEADLINE_S)
    if result.code != 0:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"code {result.code}"]
        raise CommandFailed(f"sample failed: {clean(said[0])}", "gptctl check looks at the Python that was used")
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith(b"{")]

"""Starts one of the trainer's programs in an interpreter that has torch; this module imports nothing of it.

`sample` and `eval` use it. It must not know what a program does: arguments go in, JSON lines come out.

    results(shell, Program(python, source, "evaluate"), [folder, "--slice", "0", "9"], print)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.screen.spinner import waiting
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.ports import Shell
from orchestrator.core.states import Outcome
from orchestrator.core.typed_json import WrongJson, parse
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.agent_client.client import Agent
from trainer import contract

BOOT = """\
import sys
sys.path.append(sys.argv.pop(1))
from trainer.{module} import main
sys.exit(main(sys.argv[1:]))
"""
"""The trainer's folder comes last on the path: where it is a site-packages, the interpreter's own torch must win."""
ProgramLine = dict[str, Any]
"""What a program of the trainer prints: an object on a line, whose keys are its own."""
SILENCE_S = 900.0
"""Long programs report progress every few seconds; loading a model is the longest silence."""


@dataclass(frozen=True)
class Program:
    """`python -m trainer.MODULE`, by interpreter and folder of the trainer's source."""

    python: str
    source: str
    module: str

    def argv(self, arguments: Sequence[str]) -> list[str]:
        return [self.python, "-c", BOOT.format(module=self.module), self.source, *arguments]


def here(home: Path, shell: Shell, module: str) -> Program:
    """In a Python here that has all the trainer needs: this one, or an environment that a run on `local` built."""
    facts = Agent(shell, str(home / "machine"), sys.executable).facts(sys.executable)
    able = [str(each["path"]) for each in facts["interpreters"] if each.get("trainer")]
    if not able:
        raise UserError("no Python here has torch", f"{sys.executable} -m pip install 'gptctl[trainer]', or --on-host")
    return Program(able[0], str(Path(contract.__file__).parent.parent), module)


def there(run: RunRecord, module: str) -> Program:
    """In the interpreter that the run trains with, on its machine."""
    prepared, synced = run.facts.prepared, run.facts.synced
    if run.outcome is Outcome.IMPORTED:
        raise UserError(f"{run.id} is imported: no machine has it", "omit --on-host")
    if prepared is None or synced is None:
        raise UserError(f"{run.id} has no trainer on {run.host} yet", f"gptctl resume {run.id}")
    return Program(prepared.python, synced.source, module)


def results(
    shell: Shell, program: Program, arguments: Sequence[str], on_line: Callable[[ProgramLine], None]
) -> list[ProgramLine]:
    """Its JSON lines; `on_line` gets each as it arrives. Raises UserError or CommandFailed (see failed)."""
    found = []
    try:
        with (
            shell.lines(program.argv(arguments), silence_s=SILENCE_S) as lines,
            waiting(f"{program.module}: starting torch, loading the model") as stop,
        ):
            for line in lines:
                if line.startswith(b"{"):
                    stop()
                    found.append(dict(parse(line)))
                    on_line(found[-1])
    except CommandFailed as error:
        raise failed(program.module, error.message) from error
    except WrongJson as error:
        raise failed(program.module, f"it printed what is not JSON: {error}") from error
    return found


def failed(module: str, evidence: str) -> UserError | CommandFailed:
    """The error of a failed program, from its own last line, without the command line before it.

    A line that begins with the program's name is its own explanation, of what it was given; any other is a crash.
    """
    said = clean(evidence).strip().splitlines()[-1:] or ["no reason given"]
    _, explained, words = said[0].rpartition(f"{module}: ")
    if explained:
        return UserError(words.removeprefix("error: "))
    return CommandFailed(f"{module}: {words}", "gptctl check shows what is wrong with this Python")

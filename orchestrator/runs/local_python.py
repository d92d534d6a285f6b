"""A Python on this computer that can run one of the trainer's programs, and running it. It needs what the caller names.

Example: `answer(shell, python_with(home, shell, "numpy"), "import_model", [folder, "--to", place])`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.foreign_text import clean
from orchestrator.core.typed_json import parse
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.local_shell import LocalShell
from trainer import contract

BOOT = """\
import sys
sys.path.append(sys.argv.pop(1))
from trainer.{module} import main
sys.exit(main(sys.argv[1:]))
"""
"""The trainer's folder comes last on the path: where it is a site-packages, the interpreter's own numpy must win."""
DEADLINE_S = 3600.0


def python_with(home: Path, shell: LocalShell, packages: str) -> str:
    """This Python, or one that trained on host `local`. Raises UserError where none has these packages."""
    if shell.run([sys.executable, "-c", f"import {packages}"], deadline_s=60).code == 0:
        return sys.executable
    facts = Agent(shell, str(home / "machine"), sys.executable).facts(sys.executable)
    able = [str(each["path"]) for each in facts["interpreters"] if each.get("trainer")]
    if not able:
        raise UserError(f"no Python here has {packages}", f"{sys.executable} -m pip install 'gptctl[trainer]'")
    return able[0]


def answer(shell: LocalShell, python: str, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The last line of a program's output, as JSON. Raises UserError with the program's own words, or CommandFailed."""
    source = str(Path(contract.__file__).parent.parent)
    result = shell.run([python, "-c", BOOT.format(module=module), source, *arguments], deadline_s=DEADLINE_S)
    if result.code != 0:
        said = clean(result.stderr.decode(errors="replace")).strip().splitlines()[-1:] or [f"code {result.code}"]
        _, explained, words = said[0].rpartition(f"{module}: ")
        if explained:  # it cannot do what was asked
            raise UserError(words)
        raise CommandFailed(f"{module} failed: {said[0]}", "gptctl check shows what is wrong with this Python")
    return dict(parse(result.stdout.splitlines()[-1]))

"""Runs the trainer's data programs on this computer, in a Python that has what they need, and shows their progress.

Imports neither numpy nor tiktoken. A failed program's stderr is the message of the failure.

Example::

    found = run_program("tokens.inspect_tokens", ["/data/train.bin"], needs=("numpy", "safetensors", "tiktoken"))
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.screen.screen import show_progress, talk
from orchestrator.core.errors import CommandFailed, UserError
from orchestrator.core.formats import count
from orchestrator.core.typed_json import parse
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.local_shell import LocalShell
from trainer import contract

SILENCE_S = 900.0
"""A line a second is usual; opening a tokenizer may download it first."""
NUMPY = ("numpy", "safetensors", "tiktoken")
PROGRAM = """\
import importlib, sys
from orchestrator.core.typed_json import parse
sys.path.append(sys.argv.pop(1))
sys.exit(importlib.import_module("trainer." + sys.argv.pop(1)).main(sys.argv[1:]))
"""
"""The trainer's folder comes last on the path: where it is a site-packages, the interpreter's own packages must win."""


def run_program(name: str, arguments: Sequence[str], needs: Sequence[str] = NUMPY) -> dict[str, Any]:
    """The last JSON line of `python -m trainer.NAME ARGUMENTS`. UserError with what it says on stderr."""
    shell = LocalShell()
    argv = program_argv(name, arguments, needs)
    word = name.rpartition(".")[2].split("_", maxsplit=1)[0]
    last: dict[str, Any] = {}
    try:
        with shell.lines(argv, silence_s=SILENCE_S) as lines, show_progress() as show:
            for each in _said(lines):
                if each["event"] == "progress":
                    show({"what": word, **each})
                elif each["event"] == "resumed":
                    talk(f"continuing after {count(each['documents'])} documents; {each['shards']} shards are finished")
                last = dict(each)
    except CommandFailed as error:
        own = f"{word}: "
        _, found, reason = error.message.rpartition(own)  # its own message; anything else is not your mistake
        if not found:
            raise
        raise UserError(f"data {own}{clean(reason)}") from error
    return last


def program_argv(name: str, arguments: Sequence[str], needs: Sequence[str] = NUMPY) -> list[str]:
    """`python -m trainer.NAME ARGUMENTS` on this computer."""
    python = interpreter(LocalShell(), needs)
    return [python, "-c", PROGRAM, str(Path(contract.__file__).parent.parent), name, *arguments]


def interpreter(shell: LocalShell, needs: Sequence[str]) -> str:
    """This Python if it has the packages, else an environment that a run on host `local` built."""
    if all(importlib.util.find_spec(package) for package in needs):
        return sys.executable
    facts = Agent(shell, str(open_home() / "machine"), sys.executable).facts(sys.executable)
    able = [str(each["path"]) for each in facts["interpreters"] if each.get("trainer")]
    if not able:
        raise UserError(
            f"this needs {', '.join(needs)}; no Python on this computer has them",
            f"{sys.executable} -m pip install 'gptctl[trainer]'",
        )
    return able[0]


def _said(lines: Iterable[bytes]) -> Iterable[Mapping[str, Any]]:
    for line in lines:
        if line.startswith(b"{"):
            yield parse(line)

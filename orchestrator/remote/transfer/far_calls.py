"""Questions to the far half of a transfer (`far_side.py`), over any Shell."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.core.errors import GptctlError, MachineUnfit, VerificationFailed
from orchestrator.core.ports import Result, Shell
from orchestrator.remote.shell.put_and_get import failure
from orchestrator.remote.transfer import far_program

ANSWER_WITHIN_S = 600.0
"""Hashing tens of gigabytes takes minutes. A dead link is noticed much earlier, by the connection's own heartbeat."""


def ask(shell: Shell, verb: str, question: Mapping[str, object], what: str) -> dict[str, Any]:
    """One verb's answer. `what` begins the message of whatever goes wrong."""
    result = shell.run(argv(shell, verb), stdin=json.dumps(question).encode(), deadline_s=ANSWER_WITHIN_S)
    return answer(shell, result, what)


def answer(shell: Shell, result: Result, what: str) -> dict[str, Any]:
    """The answer in a Result, or the error that its code and last words mean."""
    if result.code:
        raise refused(shell, result.code, result.stderr, what)
    try:
        found = json.loads(result.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        found = None
    if not isinstance(found, dict):
        raise VerificationFailed(f"{what}: the machine answered {result.stdout[:100]!r}", hint=STARTUP_FILES)
    return found


STARTUP_FILES = "a login shell that prints when no terminal is there breaks every transfer: check its start-up files"


def refused(shell: Shell, code: int, stderr: bytes, what: str) -> GptctlError:
    """A bad ending of the far side. 127 is the shell's word for a command it does not find."""
    if code == 127:
        name = shell.address.host or "this machine"
        return MachineUnfit(f"{what}: {name} has no python3", hint="install Python >= 3.8 on it")
    return failure(what, code, stderr)


def argv(shell: Shell, verb: str, *arguments: str) -> list[str]:
    """`-I`: no PYTHONPATH, no user site, no module that happens to lie in the home folder."""
    python = "python3" if shell.openssh() is not None else sys.executable
    return [python, "-I", "-c", _program(), verb, *arguments]


@cache
def _program() -> str:
    return Path(far_program.__file__).read_text(encoding="utf-8")

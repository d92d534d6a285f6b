"""Questions to the far half of a transfer (`far_program.py`), over any Shell: the one place where its answers are read.

Example: `read_tree(shell, question, "push src")` -> TreeState(sealed=False, folder="/root/src", missing=("a.py",), ...)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.core.errors import GptctlError, MachineUnfit, VerificationFailed
from orchestrator.core.ports import Result, Shell
from orchestrator.remote.agent_client.decoding import last_object
from orchestrator.remote.far_python import far_python
from orchestrator.remote.shell.put_and_get import failure
from orchestrator.remote.transfer import far_program

ANSWER_WITHIN_S = 600.0
"""Hashing tens of gigabytes takes minutes. A dead link is noticed much earlier, by the connection's own heartbeat."""
UNPACK_WITHIN_S = 3600.0

T = TypeVar("T")


@dataclass(frozen=True)
class TreeState:
    """A folder on the machine, compared with the files it should hold."""

    sealed: bool
    """Whether the last complete push was of the same tree."""
    folder: str
    missing: tuple[str, ...]
    """Names of the question that are not there, or differ."""
    free_bytes: int
    rsync: bool


@dataclass(frozen=True)
class FileState:
    """A file on the machine before it is sent: its digest if one of its size is there, else where its parts go."""

    path: str
    sha256: str | None
    part: str = ""
    positions: tuple[int, ...] = ()
    """Bytes that each range has."""
    free_bytes: int = 0
    needed_bytes: int = 0


def read_tree(shell: Shell, question: far_program.Tree, what: str) -> TreeState:
    """How the folder differs from the tree. `what` begins the message of whatever goes wrong, here as below."""
    return _asked(shell, "look", question, what, lambda found: _tree_state(found, question))


def seal_tree(shell: Shell, question: far_program.Tree, what: str) -> tuple[str, ...]:
    """Marks the tree as complete; else the names that are still missing."""
    return _asked(shell, "seal", question, what, lambda found: _names(found["missing"], question))


def unpack(shell: Shell, folder: str, tar: bytes) -> None:
    """Regular files of a tar into the folder."""
    result = shell.run(argv(shell, "unpack", folder), stdin=tar, deadline_s=UNPACK_WITHIN_S)
    _read(result, lambda found: None, shell, f"unpack in {folder}")


def prepare_file(shell: Shell, question: far_program.File, what: str) -> FileState:
    """What is there of a file that is about to be sent."""
    return _asked(shell, "prepare", question, what, _file_state)


def commit_file(shell: Shell, file: FileState, mode: int, what: str) -> None:
    """The complete part gets its final name."""
    _asked(shell, "commit", {"part": file.part, "path": file.path, "mode": mode}, what, lambda found: None)


def discard_parts(shell: Shell, file: FileState, what: str) -> None:
    """All parts of the file go."""
    _asked(shell, "discard", {"path": file.path}, what, lambda found: None)


def _asked(
    shell: Shell, verb: str, question: Mapping[str, object], what: str, read: Callable[[Mapping[str, Any]], T]
) -> T:
    result = shell.run(argv(shell, verb), stdin=json.dumps(question).encode(), deadline_s=ANSWER_WITHIN_S)
    return _read(result, read, shell, what)


def _read(result: Result, read: Callable[[Mapping[str, Any]], T], shell: Shell, what: str) -> T:
    """The answer in a Result, or the error that its code and last words mean."""
    if result.code:
        raise refused(shell, result.code, result.stderr, what)
    try:
        return read(last_object(result.stdout))
    except (ValueError, KeyError, TypeError, OverflowError):
        pass
    raise VerificationFailed(
        f"{what}: the machine answered {result.stdout[:100]!r}", hint="look at the machine: gptctl check HOST"
    )


def _tree_state(found: Mapping[str, Any], question: far_program.Tree) -> TreeState:
    missing = _names(found["missing"], question)
    return TreeState(
        found["sealed"] is True, str(found["folder"]), missing, int(found["free_bytes"]), bool(found["rsync"])
    )


def _names(found: Any, question: far_program.Tree) -> tuple[str, ...]:
    """Raises ValueError for a name that was not asked about."""
    names = tuple(str(name) for name in found)
    if not set(names) <= set(question["files"]):
        raise ValueError("a name that was not asked about")
    return names


def _file_state(found: Mapping[str, Any]) -> FileState:
    if found["sha256"] is not None:
        return FileState(str(found["path"]), str(found["sha256"]))
    positions = tuple(int(position) for position in found["positions"])
    if any(position < 0 for position in positions):
        raise ValueError("a position before the start")
    room = int(found["free_bytes"]), int(found["needed_bytes"])
    return FileState(str(found["path"]), None, str(found["part"]), positions, *room)


def refused(shell: Shell, code: int, stderr: bytes, what: str) -> GptctlError:
    """A bad ending of the far side. 126 and 127 are the shell's words for a command it cannot run or does not find."""
    if code in (126, 127):
        name = shell.address.host or "this machine"
        return MachineUnfit(
            f"{what}: {name} cannot run {far_python(shell)}: {stderr.decode(errors='replace').strip()[-200:]}",
            hint="install Python >= 3.8 on it, or set `python` in its inventory entry",
        )
    return failure(what, code, stderr)


def argv(shell: Shell, verb: str, *arguments: str) -> list[str]:
    """`-I`: no PYTHONPATH, no user site, no module from the home folder."""
    return [far_python(shell), "-I", "-c", _program(), verb, *arguments]


@cache
def _program() -> str:
    return Path(far_program.__file__).read_text(encoding="utf-8")

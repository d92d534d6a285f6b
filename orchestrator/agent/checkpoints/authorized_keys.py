"""One line in ~/.ssh/authorized_keys: the key of a run's home box, which may run `link` for that run and nothing else.

It must not touch any other line. It goes when all is stored, or when the run is released.

Example: `add(run, 'restrict,command="python3 ... link RUN" ssh-ed25519 AAAA...')`; `remove(run)`
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import Iterator

from ..contract.names import Code
from ..system import files
from ..system.refusal import Refusal

FILE = "~/.ssh/authorized_keys"
MARK = "gptctl-store-"


def add(run: str, line: str) -> None:
    """The run's line is this one. Raises Refusal for a line that would be more than one, or let in for more."""
    if "\n" in line or not line.startswith('restrict,command="'):
        raise Refusal(Code.BAD_REQUEST, "the home box's key must be one line that is restricted to a command")
    _replace(run, "%s %s%s" % (line, MARK, run))


def remove(run: str) -> None:
    """Twice is fine."""
    _replace(run, None)


def _replace(run: str, line: str | None) -> None:
    path = os.path.realpath(os.path.expanduser(FILE))
    if line is None and not os.path.exists(path):
        return
    files.make_folder(os.path.dirname(path))
    with _alone(path):
        known = _read(path)
        wanted = [each for each in known if each.split()[-1:] != [MARK + run]] + ([line] if line else [])
        if wanted != known:
            files.write_bytes(path, "".join(each + "\n" for each in wanted).encode(errors="surrogateescape"))


def _read(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Two runs may come at once."""
    descriptor = os.open(path + ".gptctl-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

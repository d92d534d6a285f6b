"""Not more often than an API allows, over all gptctl processes of this user: each books its turn in one small file.

A turn that is booked and never taken (the process was killed) costs the others a pause, nothing else.

Example::

    pace = Pace(home / "pace" / "lambda.json", {"request": 1.0, "launch": 12.0})
    with pace.turn("request", "launch"):      # waits until a second, and 12 s since the last launch, have passed
        post()
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.errors import UserError

LONGEST_QUEUE_S = 600.0
"""A turn booked further ahead than this was booked before the clock was set back."""


@dataclass(frozen=True)
class Pace:
    """`every_s`: seconds between two turns of a kind, such as {"request": 1.0}."""

    file: Path
    every_s: Mapping[str, float] = field(default_factory=dict)

    @contextmanager
    def turn(self, *kinds: str) -> Iterator[None]:
        """Waits for the first moment at which all these kinds are allowed; holds no lock meanwhile.

        The pause to the next turn counts from the end of this one: requests that take unequally long would otherwise
        arrive closer together than they left.
        """
        time.sleep(self._book(kinds, ahead=True))
        try:
            yield
        finally:
            self._book(kinds, ahead=False)

    def _book(self, kinds: tuple[str, ...], *, ahead: bool) -> float:
        """Writes the turn down: the next free one, or now. Returns the seconds until then."""
        with self._locked() as descriptor:
            now = time.time()
            last = {kind: at for kind, at in _read(descriptor).items() if at < now + LONGEST_QUEUE_S}
            free = [last[kind] + self.every_s.get(kind, 0.0) for kind in kinds if kind in last] if ahead else []
            moment = max(now, *free) if free else now
            _write(descriptor, {**last, **{kind: max(moment, last.get(kind, 0.0)) for kind in kinds}})
        return moment - now

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            hint = "point GPTCTL_HOME at a folder you can write to"
            raise UserError(f"cannot write {self.file}: {error.strerror}", hint) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _read(descriptor: int) -> dict[str, float]:
    """Kind -> UTC epoch seconds of its last turn. A file that was torn or tampered with is as good as none."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:
        return {}
    turns = found.items() if isinstance(found, dict) else ()
    return {str(kind): float(at) for kind, at in turns if isinstance(at, int | float)}


def _write(descriptor: int, turns: Mapping[str, float]) -> None:
    content = json.dumps(turns).encode()
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))

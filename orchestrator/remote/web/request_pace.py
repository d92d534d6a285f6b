"""Not more often than an API allows, over all gptctl processes of this user: one small file says who asked last.

A turn lasts as long as its request, and the pause counts from its end: so two requests are that far apart where they
arrive, however long either was under way. A turn that never ended (the process was killed) holds the others up for
IN_FLIGHT_S, no more.

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

IN_FLIGHT_S = 5.0
LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Pace:
    """`every_s`: seconds between two turns of a kind, such as {"request": 1.0}; other kinds are never held up."""

    file: Path
    every_s: Mapping[str, float] = field(default_factory=dict)

    @contextmanager
    def turn(self, *kinds: str) -> Iterator[None]:
        """Waits until all these kinds are allowed; nothing is locked while it waits, or while the turn lasts."""
        paced = [kind for kind in kinds if self.every_s.get(kind)]
        if not paced:
            yield
            return
        while (wait_s := self._take(paced)) > 0:
            time.sleep(min(wait_s, LOOK_EVERY_S))
        try:
            yield
        finally:
            with self._locked() as descriptor:
                _write(descriptor, {**_read(descriptor), **dict.fromkeys(paced, time.time())})

    def _take(self, kinds: list[str]) -> float:
        """0, and the turn is ours; or the seconds until it is free as things stand."""
        with self._locked() as descriptor:
            now = time.time()
            # A turn that ends later than any can was taken before the clock was set back.
            last = {kind: at for kind, at in _read(descriptor).items() if at <= now + IN_FLIGHT_S}
            wait_s = max(last[kind] + self.every_s[kind] - now if kind in last else 0.0 for kind in kinds)
            if wait_s <= 0:
                _write(descriptor, {**last, **dict.fromkeys(kinds, now + IN_FLIGHT_S)})
        return wait_s

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
    """Kind -> end of its last turn, UTC epoch seconds. A file that was torn or tampered with is as good as none."""
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

"""How far a transfer is: the values told to listeners, and the meter that counts them. Shows nothing itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

TELL_EVERY_S = 0.2


@dataclass(frozen=True)
class Transfer:
    """A moment of a transfer. `bytes_done` counts what was there before; the rate counts only what moved."""

    bytes_done: int
    bytes_total: int
    rate_bytes_per_s: float
    eta_s: float | None
    file: str
    note: str = ""
    """Something the user should know, such as the fallback to tar; empty most of the time."""


@dataclass(frozen=True)
class TransferReport:
    """What a push did. `way` is none (nothing differed), rsync, tar, ranges, put or copy."""

    files_sent: int
    bytes_sent: int
    way: str


Listener: TypeAlias = Callable[[Transfer], None]


def silent(_: Transfer) -> None:
    """The listener of those who do not listen."""


class Meter:
    """Counts bytes from several threads; tells the listener from one, at most five times a second."""

    def __init__(self, file: str, bytes_total: int, listener: Listener, *, bytes_before: int = 0) -> None:
        self._file, self._total, self._listener = file, bytes_total, listener
        self._before = bytes_before
        self._moved = 0
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._told = self._counted = self._started

    @property
    def moved_bytes(self) -> int:
        return self._moved

    @property
    def quiet_s(self) -> float:
        """Seconds since a byte was counted."""
        return time.monotonic() - self._counted

    def count(self, size_bytes: int) -> None:
        """From any thread."""
        with self._lock:
            self._moved += size_bytes
            self._counted = time.monotonic()

    def tell(self, *, note: str = "", now: bool = False) -> None:
        """From the caller's own thread, so that listeners need no locks."""
        time_s = time.monotonic()
        if not (now or note) and time_s - self._told < TELL_EVERY_S:
            return
        self._told = time_s
        rate = self._moved / max(time_s - self._started, 1e-6)
        done = min(self._before + self._moved, self._total)
        eta_s = (self._total - done) / rate if rate else None
        self._listener(Transfer(done, self._total, rate, eta_s, self._file, note))

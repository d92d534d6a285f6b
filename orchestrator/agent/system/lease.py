"""How long a run may continue without a caller. Counted on CLOCK_BOOTTIME, which no clock change moves.

A boot restarts that clock: then what was left when the lease was last written counts from the new boot on.
It must not stop anything itself; the supervisor looks here and acts.

Example::

    renew(folder, 1800.0, None)      # {'left_s': 1800.0, 'deadline_left_s': None}
    read(folder)                     # {'left_s': 1799.2, 'deadline_left_s': None}, or None
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import cast

from ..contract.answers import Lease
from ..contract.names import FileName
from . import files
from .processes import boot_id


class _Stored(Lease):
    """lease.json: what was left when it was written, and when that was."""

    boot_id: str
    written_boottime: float
    written_at: float


def now_s() -> float:
    """Seconds since boot, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def renew_every_s(lease_s: float) -> float:
    """How often a lease is renewed by what keeps it alive: in time, and rarely enough to cost nothing."""
    return min(30.0, lease_s / 4)


def path(folder: str) -> str:
    """The lease's file in the run's jobs folder."""
    return os.path.join(folder, FileName.LEASE)


def read(folder: str) -> Lease | None:
    """`left_s` and `deadline_left_s` (None: no deadline) as of now, negative when over; None without a lease."""
    stored = files.read_json(path(folder))
    try:
        return _left(cast("_Stored", stored)) if stored else None
    except (KeyError, TypeError, ValueError):
        return None


def _left(stored: _Stored) -> Lease:
    # After a reboot the old clock is gone: what was left then is what is left since this boot.
    since = now_s() - float(stored["written_boottime"]) if stored["boot_id"] == boot_id() else now_s()
    deadline = stored["deadline_left_s"]
    return {
        "left_s": round(float(stored["left_s"]) - since, 3),
        "deadline_left_s": None if deadline is None else round(float(deadline) - since, 3),
    }


def renew(folder: str, duration_s: float, deadline_s: float | None) -> Lease:
    """At least duration_s from now, never past the deadline. A new deadline replaces the old; None leaves it."""
    files.make_folder(folder)
    with open(os.path.join(folder, "lease.lock"), "a") as lock:
        # Supervisor and verbs renew at the same time: the later must see what the earlier wrote.
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = read(folder) or Lease(left_s=0.0, deadline_left_s=None)
        deadline = old["deadline_left_s"] if deadline_s is None else deadline_s
        left = max(old["left_s"], duration_s)
        fresh = Lease(left_s=left if deadline is None else min(left, deadline), deadline_left_s=deadline)
        stamp = {"boot_id": boot_id(), "written_boottime": now_s(), "written_at": time.time()}
        files.write_json(path(folder), {**fresh, **stamp})
    return fresh


def forget(folder: str) -> None:
    """No lease any more."""
    files.remove(path(folder))

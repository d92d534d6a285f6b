"""A clock for bills that cannot be set back: the time since a machine was ordered, as this computer counted it.

A wall clock that is set back while a machine is rented would make its bill shorter than its provider's. What counts on
from the boot of this computer, asleep or awake, tells how long it was at least.

Example: `counted(facts.clock, read(time.time()))`      # UTC epoch seconds, of the wall clock or later
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Reading:
    """Both clocks of this computer at one moment."""

    wall: float
    """UTC epoch seconds."""
    steady_s: float
    """Since the boot. On Linux time asleep counts too; elsewhere it may be left out, and then protects from less."""
    boot: str
    """Which boot; empty where the system does not say: then nothing is counted."""


def read(wall: float) -> Reading:
    """The steady clock beside this wall clock (UTC epoch seconds)."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return Reading(wall, time.clock_gettime(clock), _boot_id())


def counted(began: Reading | None, now: Reading) -> float:
    """UTC epoch seconds: what the wall clock says, or later by as much as it was set back since `began`."""
    if began is None or not began.boot or began.boot != now.boot:
        return now.wall
    return max(now.wall, began.wall + now.steady_s - began.steady_s)


@cache
def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""

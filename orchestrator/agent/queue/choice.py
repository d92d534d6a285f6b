"""Which waiting training starts next, and which never will. Pure: it decides on facts that runner.py gathered.

Example::

    choose([Waiting("b", needs_s=3600.0)], Machine(left_s=1800.0))
    # Choice(start=None, skipped={'b': 'needs 1.0 h, and 0.5 h are left under the ceiling'})
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence

TELLING_S = 600.0
"""A forecast of less says nothing about the pace of a machine."""
QUICKLY_S = 120.0
"""A training that fails sooner than this after its start has hardly begun."""


class Waiting(NamedTuple):
    """A training that waits. Seconds are forecasts of its caller; None: unknown, and never in the way."""

    run: str
    needs_s: float | None = None
    reserve_s: float = 0.0
    """For the last checkpoint and what follows it, at the end of the machine."""
    group: str | None = None
    group_left_s: float | None = None
    """Training time that the group may still take."""
    disk_bytes: int | None = None


class Ended(NamedTuple):
    """A training of this queue that is over. Times are this machine's UTC clock."""

    run: str
    arm: str | None
    outcome: str
    reason: str
    duration_s: float
    needs_s: float | None
    ended_at: float


class Machine(NamedTuple):
    """The machine now."""

    left_s: float | None = None
    """Until its guard ends it; None: nothing does."""
    free_bytes: int = 1 << 60
    is_storing: bool = False
    """Whether checkpoints of ended trainings are on their way to a store, and free their space then."""
    pace: float = 1.0
    """How long the last training took, as a part of what was forecast."""


class Choice(NamedTuple):
    """`start`: the run that starts now; `skipped`: runs that never will, and why."""

    start: str | None
    skipped: Mapping[str, str]
    waits_for: str = ""


def choose(waiting: Sequence[Waiting], machine: Machine) -> Choice:
    """The first one that fits in what is left; those before it that do not are skipped."""
    skipped: dict[str, str] = {}
    for each in waiting:
        why = _too_long(each, machine)
        if why is None and each.disk_bytes is not None and each.disk_bytes > machine.free_bytes:
            if machine.is_storing:
                return Choice(None, skipped, "the disk is full of checkpoints that are on their way to the store")
            why = "needs %.1f GB of disk, and %.1f GB are free" % (each.disk_bytes / 1e9, machine.free_bytes / 1e9)
        if why is None:
            return Choice(each.run, skipped)
        skipped[each.run] = why
    return Choice(None, skipped)


def _too_long(each: Waiting, machine: Machine) -> str | None:
    needs_s = (each.needs_s or 0.0) * machine.pace
    lefts = [each.group_left_s] if each.group_left_s is not None else []
    if machine.left_s is not None:
        lefts.append(machine.left_s - each.reserve_s)
    if not lefts or needs_s <= min(lefts):
        # A time that is over is over, with a forecast or without one.
        return None if not lefts or min(lefts) > 0 else _words(needs_s, 0.0)
    return _words(needs_s, min(lefts))


def _words(needs_s: float, left_s: float) -> str:
    return "needs %s, and %s are left under the ceiling" % (_time(needs_s), _time(max(0.0, left_s)))


def _time(seconds: float) -> str:
    return "%.1f h" % (seconds / 3600) if seconds >= 360 else "%.0f s" % seconds


def is_bad_machine(ended: Sequence[Ended], since: float) -> str | None:
    """Why nothing more starts: two different arms in a row failed as soon as they began, after `since`."""
    recent = sorted((each for each in ended if each.ended_at > since), key=lambda each: each.ended_at)[-2:]
    quick = [each for each in recent if each.outcome == "failed" and each.duration_s < QUICKLY_S]
    if len(quick) < 2 or quick[0].arm == quick[1].arm or quick[0].reason != quick[1].reason:
        return None
    return "%s and %s failed within %d s of their start, both with: %s" % (
        quick[0].run, quick[1].run, QUICKLY_S, quick[1].reason,
    )  # fmt: skip


def pace(ended: Sequence[Ended]) -> float:
    """Time taken over time forecast, of the newest training that finished; 1 before there is one. Of a short training
    most is its start, which takes the longer ones no longer."""
    finished = [each for each in ended if each.outcome == "finished" and (each.needs_s or 0.0) >= TELLING_S]
    if not finished:
        return 1.0
    newest = max(finished, key=lambda each: each.ended_at)
    return newest.duration_s / (newest.needs_s or 1.0)

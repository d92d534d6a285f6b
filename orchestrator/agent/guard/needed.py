"""Whether this machine is needed, and for how long: the one place that decides whether it lives. Pure: it decides on
facts that observation.py gathered.

A machine is needed while a training waits in its queue, while its own lease runs (the caller that prepares it renews
it), while a run's lease runs (progress and followers renew it), while a training stops, and while it holds kept
checkpoints that nobody fetched, for `hold_s`; never past the deadline. It is not needed once every training has ended
with everything stored and nobody attends.

Example::

    left_s(MachineFacts(own_lease_s=60.0, deadline_left_s=600.0, is_attended=False, runs=()))      # 60.0
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

from ..contract.names import GRACE_S, State, StoreState

STORING_S = 30.0
"""An upload that has begun keeps the machine this long, again and again."""
STOPPING_S = 60.0
"""On top of a training's own grace: the longest that its stopping may take."""
FOREVER_S = float("inf")


class RunFacts(NamedTuple):
    """What one run asks of the machine. Seconds are as of now."""

    lease_left_s: float = 0.0
    """0 without a lease; negative when it is over."""
    training: str | None = None
    """The state of its train job; None: it has none."""
    grace_s: float = GRACE_S
    ended_for_s: float = 0.0
    """Since its training was first seen ended."""
    hold_s: float | None = None
    """How long checkpoints that nobody fetched keep the machine; None: until the deadline."""
    unfetched: int = 0
    """Kept checkpoints of an ended training that are only here."""
    store: str | None = None
    """The state of its offload job; None: it has none."""
    may_end: bool = False
    """Its training has ended, all of it is stored, and its order is to end the machine then."""


class MachineFacts(NamedTuple):
    """What is known of the machine. Seconds are as of now."""

    own_lease_s: float
    deadline_left_s: float | None
    is_attended: bool
    runs: Sequence[RunFacts]


def left_s(machine: MachineFacts) -> float:
    """Seconds until the machine is to be ended; 0 or less: now."""
    if is_done(machine) and not machine.is_attended:
        return 0.0
    return _until_deadline(machine, max([machine.own_lease_s, *map(needed_s, machine.runs)]))


def lease_left_s(machine: MachineFacts) -> float:
    """The same without what a training adds by running, because that may end at any moment."""
    if is_done(machine):
        return 0.0
    return _until_deadline(machine, max([machine.own_lease_s, *(run.lease_left_s for run in machine.runs)]))


def is_done(machine: MachineFacts) -> bool:
    """Whether there are trainings, and each has ended with everything stored."""
    trainings = [run for run in machine.runs if run.training is not None]
    return bool(trainings) and all(run.may_end and not run.unfetched for run in trainings)


def needed_s(run: RunFacts) -> float:
    """For how long this run needs the machine."""
    if run.training == State.QUEUED:
        return FOREVER_S  # its turn comes; the deadline is the end of all of them
    if run.training == State.RUNNING:
        # At the end of its lease it is stopped, and has its grace for a last checkpoint.
        return run.lease_left_s + run.grace_s + STOPPING_S
    if run.training in (State.ENDED, State.LOST) and run.unfetched:
        held_s = FOREVER_S if run.hold_s is None else run.hold_s - run.ended_for_s
        storing_s = STORING_S if run.store == StoreState.UPLOADING else held_s
        return max(run.lease_left_s, held_s, storing_s)
    return run.lease_left_s


def _until_deadline(machine: MachineFacts, seconds: float) -> float:
    return seconds if machine.deadline_left_s is None else min(seconds, machine.deadline_left_s)

"""States and outcomes of a run, and which exit code an ended run has. Pure values.

A run has a `state` and, once it is ending, an `outcome`. `seen` (live, unknown) is separate and never changes a state:
an unreachable machine is neither dead nor alive.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a run is. Only forward; `ending` is written together with the outcome, before the first ending stage."""

    PLANNED = "planned"
    ACQUIRING = "acquiring"
    PREPARING = "preparing"
    TRAINING = "training"
    ENDING = "ending"
    ENDED = "ended"


class Outcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    LIMIT = "limit"
    PREEMPTED = "preempted"
    NEVER_STARTED = "never_started"
    IMPORTED = "imported"
    """Of a model that another program trained."""


class Seen(StrEnum):
    """Whether the machine answered when last asked."""

    LIVE = "live"
    UNKNOWN = "unknown"


ORDER = tuple(State)

EXIT_CODES = {
    Outcome.FINISHED: 0,
    Outcome.STOPPED: 0,
    Outcome.FAILED: 5,
    Outcome.LIMIT: 6,
    Outcome.PREEMPTED: 3,
    Outcome.NEVER_STARTED: 4,
    Outcome.IMPORTED: 0,
}
"""By outcome; `never_started` has its cause's code (3 or 4) where the cause is known."""

PRECEDENCE = (7, 1, 6, 5, 4, 3, 2, 0)
"""Of several exit codes the first in this row wins."""


def worst(*codes: int) -> int:
    """The exit code that wins by PRECEDENCE; 0 for none."""
    return next((code for code in PRECEDENCE if code in codes), 0)


def is_forward(old: State, new: State) -> bool:
    """Whether old -> new goes forward (or stays)."""
    return ORDER.index(new) >= ORDER.index(old)

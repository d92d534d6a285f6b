"""What happens to a run, as values: the ledger stores them, the CLI shows them, the report tells them.

Kinds, in the words of the commands and stages: `stage_started`, `stage_finished`, `stage_failed`, `state_changed`,
`plan_amended`, `progress` (never stored: bytes or steps with rate and ETA), `metric` (never stored), `log` (never
stored), `doing` (never stored: what the training does before its first step), `seen`, `detached`, `warning`, `said` (a
line for the user), `notified` (a notification was sent), `notice` (the provider will take the machine away),
`preempted` (it did, or the training ended in time for that).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

EPHEMERAL = frozenset({"progress", "metric", "log", "doing"})
"""Kinds that are shown and forgotten."""


@dataclass(frozen=True)
class Event:
    """One thing that happened, at `time` (UTC epoch seconds)."""

    kind: str
    time: float
    stage: str | None = None
    text: str = ""
    data: Mapping[str, object] = field(default_factory=dict)


Listener = Callable[[Event], None]
"""Receives each event as it happens."""

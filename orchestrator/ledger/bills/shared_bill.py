"""One machine's time, shared by the runs that trained on it: every moment is one run's, and all of them add up.

A run owns the time from the end of the training before it to its own end; the first also what came before, the last
what comes after. What a run did beside another one's training, or waited, costs it nothing.

Example: `shared(intervals, [Window("a", 100.0), Window("b", 200.0)])`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.ledger.records import AWAY, StageInterval


@dataclass(frozen=True)
class Window:
    """A run, and when its training ended (UTC epoch seconds)."""

    run_id: str
    ended_at: float


def shared(intervals: Sequence[StageInterval], windows: Sequence[Window]) -> list[StageInterval]:
    """The closed intervals of a rental, cut and filled so that their times add up to the rental's whole. windows: of
    the runs that trained; the others own nothing."""
    if not intervals or not windows:
        return list(intervals)
    begin, end = min(each.started_at for each in intervals), max(each.ended_at or each.last_at for each in intervals)
    rental_id, price = intervals[0].rental_id, max(each.price_per_hour_usd for each in intervals)
    found: list[StageInterval] = []
    since = begin
    for number, window in enumerate(ordered := sorted(windows, key=lambda each: (each.ended_at, each.run_id))):
        until = end if number == len(ordered) - 1 else min(end, max(since, window.ended_at))
        own = sorted((each for each in intervals if each.run_id == window.run_id), key=lambda each: each.started_at)
        found += _filled(own, since, until, StageInterval(window.run_id, rental_id, AWAY, 0.0, 0.0, 0.0, price))
        since = until
    return found


def _filled(own: Sequence[StageInterval], since: float, until: float, away: StageInterval) -> list[StageInterval]:
    """The intervals within since..until, without overlap; `away` fills the gaps."""
    found, at = [], since
    for each in own:
        start, stop = max(at, each.started_at), min(until, each.ended_at or each.last_at)
        if stop <= start:
            continue
        if start > at:
            found.append(replace(away, started_at=at, ended_at=start, last_at=start))
        price = away.price_per_hour_usd
        found.append(replace(each, started_at=start, ended_at=stop, last_at=stop, price_per_hour_usd=price))
        at = stop
    if until > at and math.isfinite(until):
        found.append(replace(away, started_at=at, ended_at=until, last_at=until))
    return found

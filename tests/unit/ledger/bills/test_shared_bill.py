"""One machine's time shared by its runs: whatever was noted, and in whatever order, no moment counts twice."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.bills.shared_bill import Window, shared
from orchestrator.ledger.records import StageInterval

MOMENTS = st.floats(0, 1000)
RUNS = st.sampled_from(["a", "b", "c", "never-trained"])


def interval(run_id: str, start: float, end: float, stage: str = "follow") -> StageInterval:
    return StageInterval(run_id, "r", stage, start, end, end, 2.0)


INTERVALS = st.lists(
    st.builds(lambda run, a, b: interval(run, min(a, b), max(a, b)), RUNS, MOMENTS, MOMENTS), min_size=1
)


def length(intervals: list[StageInterval]) -> float:
    return sum((each.ended_at or 0.0) - each.started_at for each in intervals)


@given(INTERVALS, st.dictionaries(st.sampled_from(["a", "b", "c"]), MOMENTS, min_size=1))
def test_the_shares_add_up_to_the_whole_and_never_overlap(
    intervals: list[StageInterval], ends: dict[str, float]
) -> None:
    found = shared(intervals, [Window(*each) for each in ends.items()])
    whole = max(each.ended_at or 0.0 for each in intervals) - min(each.started_at for each in intervals)
    assert abs(length(found) - whole) < 1e-6
    ordered = sorted(found, key=lambda each: (each.started_at, each.ended_at))
    assert all(a.ended_at <= b.started_at for a, b in itertools.pairwise(ordered) if a.ended_at is not None)
    assert {each.run_id for each in found} <= set(ends)


def test_a_queue_followed_from_away_is_paid_by_who_trained() -> None:
    """Run a is driven until its training runs; then nobody looks until all is over, and b waited beside it."""
    noted = [
        interval("a", 0, 10, "acquire"),
        interval("a", 10, 20, "launch"),
        interval("b", 20, 30, "sync"),
        interval("b", 300, 310, "fetch"),
    ]
    found = shared(noted, [Window("b", 250), Window("a", 120)])
    assert [(each.run_id, each.stage, each.started_at, each.ended_at) for each in found] == [
        ("a", "acquire", 0, 10), ("a", "launch", 10, 20), ("a", "away", 20, 120),
        ("b", "away", 120, 300), ("b", "fetch", 300, 310),
    ]  # fmt: skip

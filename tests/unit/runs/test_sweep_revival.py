"""What goes on on another machine, and what must not: forgotten arms, those driven elsewhere, a ceiling twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.states import State
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs.housekeeping import forget
from orchestrator.runs.sweep_revival import has_no_machine, revive_taken, revive_unbought
from orchestrator.stages.outcome import next_attempt
from tests.unit.runs.test_sweep_taken import Place, show


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A sweep whose machine was taken away; its arms begin at their first steps."""
    monkeypatch.setattr(next_attempt.continue_from, "newest", lambda context: None)
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        yield Place(ledger, None)


def test_a_forgotten_arm_never_trains_again(taken: Place) -> None:
    """No list would show it: neither `status` nor `stop` could find what costs."""
    taken.add("late")
    for arm in ("wide", "late"):
        forget(taken.ledger, taken.runs()[arm], time.time(), only_copies=True)
        assert not has_no_machine(taken.ledger, taken.runs()[arm])
    assert revive_unbought(taken.ledger, taken.sweep.id, time.time()) == []
    (fresh,) = revive_taken(taken.ledger.home, taken.sweep.id, show)
    assert {arm for arm, run in taken.runs().items() if run.rental_id == fresh} == {"base", "deep"}
    assert [taken.runs()[arm].state for arm in ("wide", "late")] == [State.ENDED] * 2

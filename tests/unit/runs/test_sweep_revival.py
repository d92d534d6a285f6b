"""What goes on on another machine, and what must not: forgotten arms, those driven elsewhere, a ceiling twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import RunLocked
from orchestrator.core.states import State
from orchestrator.ledger import sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs.handover import give, runs_meant
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


def test_what_another_computer_drives_gets_no_second_machine_from_here(taken: Place) -> None:
    """It was handed over while it had no machine: the driver's ledger alone says where it goes on."""
    taken.add("late")
    ledger, here = taken.ledger, runs_meant(taken.ledger, "s")
    give(ledger, here, to="pi", patience_s=1.0)
    before = sweeps.runs_of(ledger.rows, taken.sweep.id), ledger.rentals()
    with pytest.raises(RunLocked, match="is driven by pi") as refused:
        revive_unbought(ledger, taken.sweep.id, time.time())
    assert f"gptctl driver take {here[0]} pi" in refused.value.hint
    with pytest.raises(RunLocked, match="is driven by pi"):
        revive_taken(ledger.home, taken.sweep.id, show)
    assert (sweeps.runs_of(ledger.rows, taken.sweep.id), ledger.rentals()) == before


def test_one_run_that_another_computer_drives_is_enough(taken: Place) -> None:
    taken.ledger.update_run(taken.runs()["done"].id, facts={"driven_by": "pi"})
    with pytest.raises(RunLocked, match="is driven by pi"):
        revive_taken(taken.ledger.home, taken.sweep.id, show)
    assert len(taken.ledger.rentals()) == 1

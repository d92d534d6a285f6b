"""The ceiling of a sweep is agreed to once: over every order of additions, losses and machines in place of others."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import UserError
from orchestrator.core.facts.run_facts import QueueFacts
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RENTAL_RELEASED, Attempt, Rental, RunRecord
from orchestrator.ledger.sweeps import SweepTerms
from orchestrator.runs.new_run import RunRequest, record_of
from orchestrator.runs.sweep_revival import LEAST_USD, in_place_of, revive_taken, revive_unbought
from orchestrator.runs.sweeps import add_arms, grouped, new_sweep, spent_by_machine, spent_usd
from orchestrator.stages.outcome import next_attempt
from tests.unit.runs.test_sweep_taken import HOST, MACHINE, RECIPE, show

CEILING_USD = 20.0
NOW = time.time()
PLAN = make_plan(RECIPE, HOST, MACHINE, None, now=NOW)


def request(arm: str) -> RunRequest:
    labels = {"sweep": "s", "arm": arm, "seed": "1"}
    return RunRequest(RECIPE, HOST, MACHINE, PLAN, labels=labels, queue=QueueFacts())


class Money:
    """A sweep of four arms on two machines, and what can happen to it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.added = ledger, 0
        requests = [(request(arm), number % 2) for number, arm in enumerate(("base", "wide", "deep", "last"))]
        terms = SweepTerms(baseline="base", ceiling_usd=CEILING_USD)
        self.sweep = new_sweep(ledger, "s", terms, requests, ceilings_usd=[12.0, 8.0], now=NOW)

    def rentals(self) -> list[Rental]:
        return [self.ledger.rental(each) for each in spent_by_machine(self.ledger, self.sweep)]

    def held(self, of: int) -> Rental | None:
        found = [each for each in self.rentals() if each.state == RENTAL_OPEN]
        return found[of % len(found)] if found else None

    def runs_on(self, rental: Rental) -> list[RunRecord]:
        runs = sweeps.runs_of(self.ledger.rows, self.sweep.id)
        return [run for run in runs if run.rental_id == rental.id and run.state is not State.ENDED]

    def end(self, run: RunRecord, outcome: Outcome) -> None:
        self.ledger.set_state(run.id, State.ENDING, outcome=outcome, cause="no capacity")
        self.ledger.set_state(run.id, State.ENDED)

    def could_not_be_had(self, rental: Rental) -> None:
        for run in self.runs_on(rental):
            self.end(run, Outcome.PREEMPTED if self.ledger.attempts(run.id) else Outcome.NEVER_STARTED)

    def trains(self, rental: Rental) -> None:
        """Half of what it may still spend, with the first of its arms."""
        self.ledger.update_rental(rental.id, facts={"reached": NOW})
        run = self.runs_on(rental)[0]
        self.ledger.add_attempt(Attempt(run.id, 1 + len(self.ledger.attempts(run.id)), rental.id, NOW))
        usd = ((rental.facts.ceiling_usd or 0.0) - spent_by_machine(self.ledger, self.sweep)[rental.id]) / 2
        self.ledger.close_stage(self.ledger.open_stage(run.id, rental.id, "follow", 3600.0), NOW + usd)

    def is_taken(self, rental: Rental) -> None:
        for run in self.runs_on(rental):
            self.end(run, Outcome.PREEMPTED)

    def arm_finishes(self, rental: Rental) -> None:
        self.end(self.runs_on(rental)[0], Outcome.FINISHED)

    def add(self) -> None:
        self.added += 1
        add_arms(self.ledger, self.sweep, [request(f"late-{self.added}")], NOW)

    def resume(self) -> None:
        revive_unbought(self.ledger, self.sweep.id, NOW)
        revive_taken(self.ledger.home, self.sweep.id, show)

    def happens(self, event: str, of: int) -> None:
        if event in ("add", "resume"):
            getattr(self, event)()
        elif (rental := self.held(of)) is not None:
            getattr(self, event)(rental)
            if not self.runs_on(rental):
                self.ledger.update_rental(rental.id, state=RENTAL_RELEASED)

    def most_usd(self) -> float:
        """What it has cost, and what the machines that are held may cost."""
        spent = spent_by_machine(self.ledger, self.sweep)
        open_ones = [each for each in self.rentals() if each.state == RENTAL_OPEN]
        return spent_usd(self.ledger, self.sweep) + sum(
            max(0.0, (each.facts.ceiling_usd or 0.0) - spent[each.id]) for each in open_ones
        )


EVENTS = ("could_not_be_had", "trains", "is_taken", "arm_finishes", "add", "resume")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 1)), min_size=2, max_size=10))
def test_what_is_spent_and_what_machines_may_spend_stay_under_the_ceiling(story: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(next_attempt.continue_from, "newest", lambda context: None)
        with Ledger.open(Path(folder) / "home", lambda: NOW) as ledger:
            money = Money(ledger)
            for event, of in story:
                money.happens(event, of)
                assert money.most_usd() <= CEILING_USD + LEAST_USD * len(money.rentals()), (event, money.rentals())


@pytest.fixture
def money(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Money]:
    monkeypatch.setattr(next_attempt.continue_from, "newest", lambda context: None)
    with Ledger.open(tmp_path / "home", lambda: NOW) as ledger:
        yield Money(ledger)


@pytest.mark.parametrize("lost", ["could_not_be_had", "is_taken"])
def test_what_is_added_while_no_machine_is_held_meets_those_that_wait_on_one(money: Money, lost: str) -> None:
    """On the machine in place of the one that left the most; the other keeps its own part."""
    for rental in money.rentals():
        money.happens("trains" if lost == "is_taken" else "resume", 0)
        money.happens(lost, 0)
        assert money.ledger.rental(rental.id).state == RENTAL_RELEASED
    money.happens("add", 0)
    money.happens("resume", 0)
    runs = {run.labels["arm"]: run for run in sweeps.runs_of(money.ledger.rows, money.sweep.id)}
    assert runs["late-1"].rental_id == runs["base"].rental_id == runs["deep"].rental_id != runs["wide"].rental_id
    ceilings = [each.facts.ceiling_usd for each in money.rentals() if each.state == RENTAL_OPEN]
    assert sorted(filter(None, ceilings)) == pytest.approx([4.0, 6.0] if lost == "is_taken" else [8.0, 12.0])
    assert money.most_usd() == pytest.approx(CEILING_USD)


def labelled(money: Money) -> dict[str, RunRecord]:
    return {run.labels["arm"]: run for run in sweeps.runs_of(money.ledger.rows, money.sweep.id)}


def test_of_two_that_put_a_machine_in_place_of_one_at_the_same_time_there_is_one(
    money: Money, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm is added while a resume asks the store for the newest checkpoint: `add` puts what only waited on a machine
    in place of theirs, and what trained meets it there."""
    for event in ("trains", "is_taken", "is_taken"):
        money.happens(event, 0)

    def newest(context: object) -> None:
        if not money.added:
            with Ledger.open(money.ledger.home, lambda: NOW) as other:
                money.added += 1
                add_arms(other, money.sweep, [request("late-1")], NOW)

    monkeypatch.setattr(next_attempt.continue_from, "newest", newest)
    (there,) = revive_taken(money.ledger.home, money.sweep.id, show)
    assert labelled(money)["base"].rental_id == labelled(money)["deep"].rental_id == there
    assert money.most_usd() <= CEILING_USD + LEAST_USD


def test_the_second_machine_in_place_of_one_is_refused_whole(money: Money) -> None:
    """Its part of the ceiling is the first one's."""
    money.happens("could_not_be_had", 0)
    last, *_ = [each for each in money.rentals() if each.state == RENTAL_RELEASED]
    revive_unbought(money.ledger, money.sweep.id, NOW)
    before, fresh = money.ledger.rentals(), in_place_of(last, 12.0, NOW)
    run = record_of(request("late-1"), fresh.id, NOW)
    with pytest.raises(UserError, match="rents a machine") as refused:
        sweeps.add(money.ledger.rows, None, [fresh], grouped(money.sweep, [run]))
    assert "repeat the command" in refused.value.hint
    assert money.ledger.rentals() == before and "late-1" not in labelled(money)

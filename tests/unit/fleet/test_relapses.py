"""A machine that lives although its rental was released costs again, in every total, until it is proven gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator.core.facts.rental_facts import GivenBack
from orchestrator.core.fleet.orphans import UNHEARD, UNLISTED, Orphan, survey
from orchestrator.core.money.billing import MachineLife
from orchestrator.core.ports import Instance, Provider
from orchestrator.core.states import Outcome, State
from orchestrator.fleet.known_rentals import known_rentals
from orchestrator.fleet.relapses import close, note_unseen, reopen, uncounted
from orchestrator.ledger import Intent, Ledger, Rental, RunRecord
from orchestrator.ledger.bills.run_estimate import run_estimate
from orchestrator.ledger.records import RENTAL_OPEN, RENTAL_RELEASED

ORDERED, ACTIVE, RELEASED = 1000.0, 1030.0, 1400.0
PRICE = 15.92


class Clock:
    now = ORDERED

    def __call__(self) -> float:
        return self.now


class Cloud:
    """What `close` asks of a provider."""

    billing_unit_s = 60.0

    def ended_at(self, instance: Instance) -> None:
        return None


PROVIDER = cast("Provider", Cloud())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """One run, ended, on one rental, released and settled at RELEASED."""
    with Ledger.open(tmp_path / "home", clock) as ledger:
        life = MachineLife(booting_at=ORDERED, active_at=ACTIVE, alive_at=RELEASED - 5, gone_at=RELEASED)
        rental = Rental("m-1", "lambda", "cloud", "8xA100-40GB", ORDERED, "i-1", PRICE)
        ledger.add_rental(replace(rental, facts=replace(rental.facts, life=life)))
        run = RunRecord("r-1", "quickstart", "cloud", "8xA100-40GB", ORDERED, rental_id="m-1")
        ledger.add_run(replace(run, state=State.ENDED, outcome=Outcome.STOPPED))
        ledger.add_intent(Intent("n-1", "m-1", ORDERED))
        ledger.close_intent("n-1", "bought")
        stage = ledger.open_stage("r-1", "m-1", "acquire", PRICE)
        clock.now = RELEASED
        ledger.close_stage(stage)
        ledger.settle("m-1", ledger.rental("m-1").settled_bill(60.0, ()))
        ledger.update_rental("m-1", state=RENTAL_RELEASED, released_at=clock.now)
        yield ledger


def rows(ledger: Ledger, now: float, instance_id: str = "i-1", status: str = "active") -> list[Orphan]:
    listed = Instance("lambda", instance_id, "8xA100-40GB", status=status, rental_id="m-1", price_per_hour_usd=PRICE)
    return survey([listed], known_rentals(ledger), now)


def spent(ledger: Ledger) -> float:
    (run,) = ledger.spent_by_run()
    total = sum(run.by_stage.values())
    assert total == pytest.approx(ledger.spend_since(0.0)), "the month's ceiling counts what `cost` shows"
    return total


def theirs(began: float, now: float) -> float:
    """By the books of a cloud that bills started minutes."""
    return math.ceil((now - began) / 60) * PRICE / 60 - 1e-9


@pytest.mark.parametrize("seen_after_s", [3.0, 61.0, 4000.0])
@pytest.mark.parametrize("lives_s", [0.5, 59.0, 3600.0])
def test_a_relapsed_machine_costs_from_its_order_until_it_is_proven_gone(
    ledger: Ledger, clock: Clock, seen_after_s: float, lives_s: float
) -> None:
    before = spent(ledger)
    clock.now = RELEASED + seen_after_s
    assert spent(ledger) == pytest.approx(before), "nobody knows of it yet"
    found = uncounted(ledger, rows(ledger, clock.now))
    reopen(ledger, found, clock.now)
    assert spent(ledger) >= theirs(ACTIVE, clock.now)
    assert ledger.billing_per_hour_usd() == PRICE
    clock.now += lives_s
    assert spent(ledger) >= theirs(ACTIVE, clock.now)
    close(ledger, PROVIDER, found[0], clock.now)
    bill = spent(ledger)
    assert bill >= theirs(ACTIVE, clock.now) and ledger.billing_per_hour_usd() == 0
    rental = ledger.rental("m-1")
    assert rental.state == RENTAL_RELEASED and rental.facts.bill is not None
    assert rental.facts.bill.cost.high == pytest.approx(bill)
    assert rental.facts.bill.cost.low <= theirs(ACTIVE, RELEASED) + 1e-6
    clock.now += 9 * 3600
    assert spent(ledger) == pytest.approx(bill)
    assert ledger.spend_since(RELEASED + 1) > 0, "what it cost after the release is of that time"


def test_it_says_how_much_less_it_may_be(ledger: Ledger, clock: Clock) -> None:
    clock.now += 3600
    reopen(ledger, uncounted(ledger, rows(ledger, clock.now)), clock.now)
    estimate = run_estimate(ledger.run("r-1"), ledger.rental("m-1"), spent(ledger))
    assert estimate.low <= theirs(ACTIVE, RELEASED) + 1e-6 and estimate.high >= theirs(ACTIVE, clock.now)


def test_a_second_machine_of_a_released_rental_costs_from_the_first_order(ledger: Ledger, clock: Clock) -> None:
    before = spent(ledger)
    clock.now += 50
    found = uncounted(ledger, rows(ledger, clock.now, "i-2"))
    reopen(ledger, found, clock.now)
    assert spent(ledger) >= before + theirs(ORDERED, clock.now) - 1e-9
    assert uncounted(ledger, rows(ledger, clock.now, "i-2")) == [], "once"
    assert [each.instance_id for each in known_rentals(ledger)["m-1"].machines] == ["i-1", "i-2"]
    close(ledger, PROVIDER, found[0], clock.now)
    assert ledger.rental("m-1").state == RENTAL_RELEASED
    assert spent(ledger) >= before + theirs(ORDERED, clock.now) - 1e-9


def test_a_machine_that_a_refused_order_bought_after_all_is_its_rentals(ledger: Ledger, clock: Clock) -> None:
    ledger.update_rental("m-1", instance_id=None, facts={"life": MachineLife()})
    clock.now += 100
    reopen(ledger, uncounted(ledger, rows(ledger, clock.now, "i-9")), clock.now)
    assert ledger.rental("m-1").instance_id == "i-9" and spent(ledger) >= theirs(ORDERED, clock.now)


def test_while_one_machine_lives_its_rental_stays_open(ledger: Ledger, clock: Clock) -> None:
    reopen(ledger, uncounted(ledger, [*rows(ledger, clock.now), *rows(ledger, clock.now, "i-2")]), clock.now)
    close(ledger, PROVIDER, rows(ledger, clock.now)[0], clock.now + 60)
    clock.now += 3600
    assert ledger.rental("m-1").state == RENTAL_OPEN and spent(ledger) >= theirs(ORDERED, clock.now)


@pytest.mark.parametrize("status", ["terminating", "terminated", "preempted", UNHEARD, UNLISTED])
def test_what_is_no_sighting(ledger: Ledger, clock: Clock, status: str) -> None:
    assert uncounted(ledger, rows(ledger, clock.now, status=status)) == []


def change(**fields: object) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.update_rental("m-1", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "before",
    [
        change(state=RENTAL_OPEN, facts={"life": MachineLife(booting_at=ORDERED)}),
        change(state=RENTAL_OPEN, facts={"given_back": (GivenBack("i-1", MachineLife(booting_at=ORDERED)),)}),
        lambda ledger: ledger.add_intent(Intent("n-2", "m-1", RELEASED)),
    ],
    ids=["it is held", "it is a known second one", "an order is open"],
)
def test_what_counts_already(ledger: Ledger, clock: Clock, before: Callable[[Ledger], None]) -> None:
    before(ledger)
    assert uncounted(ledger, rows(ledger, clock.now)) == []


def test_beside_an_order_that_was_refused_a_machine_is_a_second_one(ledger: Ledger, clock: Clock) -> None:
    """The driver of the run goes on to order one: what it then holds must not hide this one."""
    ledger.update_rental("m-1", state=RENTAL_OPEN, released_at=None, instance_id=None, facts={"life": MachineLife()})
    before = spent(ledger)
    clock.now += 100
    reopen(ledger, uncounted(ledger, rows(ledger, clock.now, "i-9")), clock.now)
    rental = ledger.rental("m-1")
    assert (rental.instance_id, [each.instance_id for each in rental.facts.given_back]) == (None, ["i-9"])
    assert spent(ledger) >= max(before, theirs(ORDERED, clock.now)) and ledger.billing_per_hour_usd() == PRICE


def test_a_machine_that_ends_by_itself_costs_no_more_until_it_is_seen_again(ledger: Ledger, clock: Clock) -> None:
    reopen(ledger, uncounted(ledger, rows(ledger, clock.now)), clock.now)
    clock.now += 600
    note_unseen(ledger, [ledger.rental("m-1")], ["i-2"], clock.now)
    ended = spent(ledger)
    assert ended >= theirs(ACTIVE, clock.now) and ledger.billing_per_hour_usd() == 0
    clock.now += 3600
    assert spent(ledger) == pytest.approx(ended) and ledger.rental("m-1").state == RENTAL_OPEN
    reopen(ledger, uncounted(ledger, rows(ledger, clock.now)), clock.now)
    assert spent(ledger) >= theirs(ACTIVE, clock.now)


@pytest.mark.parametrize("elsewhere", ["it goes on elsewhere", "it was forgotten"])
def test_the_machine_that_a_run_has_left_is_over_and_costs_that_run(
    ledger: Ledger, clock: Clock, elsewhere: str
) -> None:
    if elsewhere == "it was forgotten":
        ledger.update_run("r-1", facts={"forgotten_at": clock.now})
    else:
        ledger.add_rental(Rental("m-2", "lambda", "cloud", "8xA100-40GB", clock.now))
        ledger.rows.execute("UPDATE runs SET rental_id = 'm-2', state = 'training', outcome = NULL")
    reopen(ledger, uncounted(ledger, rows(ledger, clock.now)), clock.now)
    clock.now += 3600
    (row,) = rows(ledger, clock.now)
    assert row.over and ledger.spend_since(0.0) >= theirs(ACTIVE, clock.now)
    assert ledger.intervals("r-1")[-1].stage == "away"
    close(ledger, PROVIDER, row, clock.now)
    assert ledger.rental("m-1").state == RENTAL_RELEASED and ledger.spend_since(0.0) >= theirs(ACTIVE, clock.now)

"""A machine that may be billing costs up to now, whoever looks or does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.facts.rental_facts import GivenBack, RentalFactChanges, RentalFacts
from orchestrator.core.money.billing import MachineLife
from orchestrator.core.money.counted_time import read
from orchestrator.core.states import State
from orchestrator.ledger import Intent, Ledger, Rental, RunRecord

HOUR = 3600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_ledger(tmp_path: Path, clock: Clock) -> Callable[[], Ledger]:
    return lambda: Ledger.open(tmp_path / "home", clock)


def rent(ledger: Ledger, clock: Clock, provider: str = "lambda", instance_id: str | None = "i-1") -> None:
    """A run whose driver was killed one hour after it began to acquire, at $10/h."""
    rental = Rental("m-1", provider, "h", "8xH100", clock.now, instance_id=instance_id, price_per_hour_usd=10.0)
    ledger.add_rental(rental)
    ledger.add_run(RunRecord("r-1", "quickstart", "h", "8xH100", clock.now, rental_id="m-1"))
    stage = ledger.open_stage("r-1", "m-1", "acquire", 10.0)
    clock.now += HOUR
    ledger.touch_stage(stage)


def spent(ledger: Ledger) -> float:
    intervals = ledger.intervals("r-1")
    assert intervals == ledger.all_intervals()["r-1"]
    usd = sum(
        ((each.ended_at or each.last_at) - each.started_at) / HOUR * each.price_per_hour_usd for each in intervals
    )
    assert usd == pytest.approx(ledger.spend_since(0.0))
    return usd


def test_a_clock_that_is_set_back_does_not_stop_the_meter(open_ledger: Callable[[], Ledger], clock: Clock) -> None:
    with open_ledger() as ledger:
        ordered = read(clock.now)
        rent(ledger, clock)
        life = MachineLife(booting_at=1000.0, active_at=1000.0)
        an_hour_ago = replace(ordered, steady_s=ordered.steady_s - 2 * HOUR)
        ledger.update_rental("m-1", facts={"life": life, "clock": an_hour_ago})
        clock.now -= 0.9 * HOUR
        assert 20.0 <= ledger.spend_since(0.0) < 20.5


def test_a_night_without_a_driver_is_counted(open_ledger: Callable[[], Ledger], clock: Clock) -> None:
    with open_ledger() as ledger:
        rent(ledger, clock)
        clock.now += 9 * HOUR
        assert spent(ledger) == pytest.approx(100.0)
        assert ledger.spend_since(clock.now - HOUR) == pytest.approx(10.0)


@pytest.mark.parametrize("state", [State.PLANNED, State.PREPARING, State.TRAINING])
def test_driving_on_loses_none_of_it(open_ledger: Callable[[], Ledger], clock: Clock, state: State) -> None:
    with open_ledger() as ledger:
        rent(ledger, clock)
        if state != State.PLANNED:
            ledger.set_state("r-1", state)
        clock.now += 9 * HOUR
        ledger.open_stage("r-1", "m-1", "provision", 10.0)
        clock.now += HOUR
        assert spent(ledger) == pytest.approx(110.0)


def test_an_order_without_an_answer_counts_until_it_is_closed(open_ledger: Callable[[], Ledger], clock: Clock) -> None:
    with open_ledger() as ledger:
        rent(ledger, clock, instance_id=None)
        ledger.add_intent(Intent("n-1", "m-1", clock.now))
        clock.now += HOUR
        assert spent(ledger) == pytest.approx(20.0)
        ledger.close_intent("n-1", "unseen")
        assert spent(ledger) == pytest.approx(10.0)


def test_a_machine_that_is_gone_costs_no_more(open_ledger: Callable[[], Ledger], clock: Clock) -> None:
    with open_ledger() as ledger:
        rent(ledger, clock)
        clock.now += HOUR
        ledger.update_rental("m-1", facts={"life": MachineLife(active_at=1000.0, gone_at=clock.now)})
        clock.now += 9 * HOUR
        assert spent(ledger) == pytest.approx(20.0)
        ledger.update_rental("m-1", state="released")
        assert spent(ledger) == pytest.approx(10.0)


def cloud_usd(active_at: float, now: float) -> float:
    """By the books of a cloud that bills started minutes at $10/h."""
    return max(1, math.ceil((now - active_at) / 60)) / 6


@pytest.mark.parametrize("alone_s", [0.0, 7.0, 59.9, 60.0, 61.0, 4000.0])
@pytest.mark.parametrize("active_s", [None, 0.0, 3.0, 45.0, 61.5])
def test_it_is_never_less_than_the_clouds_books(
    open_ledger: Callable[[], Ledger], clock: Clock, alone_s: float, active_s: float | None
) -> None:
    ordered_at = clock.now
    with open_ledger() as ledger:
        ledger.add_rental(Rental("m-1", "lambda", "h", "8xH100", clock.now, price_per_hour_usd=10.0))
        ledger.add_run(RunRecord("r-1", "quickstart", "h", "8xH100", clock.now, rental_id="m-1"))
        ledger.add_intent(Intent("n-1", "m-1", clock.now))
        ledger.touch_stage(ledger.open_stage("r-1", "m-1", "acquire", 10.0))
        clock.now += alone_s
        assert spent(ledger) >= cloud_usd(ordered_at, clock.now) * (alone_s > 0) - 1e-9
        first_seen_at = ordered_at + (active_s or 0.0)
        life = MachineLife(booting_at=ordered_at, active_at=None if active_s is None else first_seen_at)
        ledger.update_rental("m-1", instance_id="i-1", facts={"life": life})
        clock.now = max(clock.now, first_seen_at) + 0.5
        ledger.touch_stage(ledger.open_stage("r-1", "m-1", "provision", 10.0))
        for _ in range(3):
            assert spent(ledger) == pytest.approx(cloud_usd(ordered_at, clock.now)), "as if active since the order"
            clock.now += 17.0


def test_a_second_machine_counts_until_it_is_seen_to_end(open_ledger: Callable[[], Ledger], clock: Clock) -> None:
    with open_ledger() as ledger:
        rent(ledger, clock)
        life = MachineLife(booting_at=1000.0, active_at=clock.now, alive_at=clock.now)
        facts: RentalFactChanges = {"life": life, "given_back": (GivenBack("i-2", life),)}
        ledger.update_rental("m-1", facts=facts)
        clock.now += 4 * HOUR
        assert spent(ledger) == pytest.approx(100.0)
        ledger.update_rental("m-1", facts={"given_back": (GivenBack("i-2", replace(life, gone_at=clock.now)),)})
        clock.now += 4 * HOUR
        assert spent(ledger) == pytest.approx(140.0)


@pytest.mark.parametrize("runs", [1, 0])
def test_an_adopted_machine_costs_before_any_stage_begins(
    open_ledger: Callable[[], Ledger], clock: Clock, runs: int
) -> None:
    life = MachineLife(booting_at=clock.now, active_at=clock.now, alive_at=clock.now)
    with open_ledger() as ledger:
        rental = Rental("m-1", "lambda", "h", "8xH100", clock.now, instance_id="i-1", price_per_hour_usd=10.0)
        ledger.add_rental(replace(rental, facts=RentalFacts(life=life)))
        for number in range(runs):
            ledger.add_run(RunRecord(f"r-{number}", "quickstart", "h", "8xH100", clock.now, rental_id="m-1"))
        clock.now += HOUR
        assert ledger.spend_since(0.0) == pytest.approx(10.0)
        assert sum(sum(run.by_stage.values()) for run in ledger.spent_by_run()) == pytest.approx(10.0 * runs)


@pytest.mark.parametrize(
    ("instance_id", "held_gone", "seconds", "machines"),
    [("i-1", False, 0, 1), ("i-1", False, 2, 3), ("i-1", True, 1, 1), (None, False, 1, 1), (None, False, 0, 0)],
)
def test_what_bills_per_hour_counts_every_machine(
    open_ledger: Callable[[], Ledger], clock: Clock, instance_id: str | None, held_gone: bool, seconds: int,
    machines: int,
) -> None:  # fmt: skip
    with open_ledger() as ledger:
        rent(ledger, clock, instance_id=instance_id)
        life = MachineLife(booting_at=1000.0, active_at=1000.0, alive_at=clock.now)
        others = [GivenBack(f"i-{number + 2}", life) for number in range(seconds)]
        others.append(GivenBack("i-0", replace(life, gone_at=clock.now)))
        own = replace(life, gone_at=clock.now) if held_gone else life
        ledger.update_rental("m-1", facts={"life": own if instance_id else MachineLife(), "given_back": tuple(others)})
        assert ledger.billing_per_hour_usd() == pytest.approx(10.0 * machines)
        before = ledger.spend_since(0.0)
        clock.now += HOUR
        assert ledger.spend_since(0.0) - before == pytest.approx(10.0 * machines, abs=0.2)


@pytest.mark.parametrize("provider", ["ssh", "local"])
def test_a_machine_of_your_own_costs_only_while_it_works(
    open_ledger: Callable[[], Ledger], clock: Clock, provider: str
) -> None:
    with open_ledger() as ledger:
        rent(ledger, clock, provider)
        clock.now += 9 * HOUR
        assert spent(ledger) == pytest.approx(10.0)

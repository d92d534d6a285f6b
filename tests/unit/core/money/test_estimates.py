"""One shape for every amount that is not known exactly, and how people read it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.estimate import Estimate
from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.formats import dollars, dollars_between
from orchestrator.core.money.billing import (
    CLOCKS_DIFFER_S,
    MachineLife,
    SettledBill,
    Span,
    bill,
    rental_cost,
    settled,
)

USD = st.floats(0.0001, 100_000.0)


@pytest.mark.parametrize(
    ("low", "usd", "high", "words"),
    [
        (0.0037, 0.0037, 0.0038, "$0.0037"),
        (0.0037, 0.0037, 0.0037, "$0.0037"),
        (0.53, 1.33, 1.33, "$0.53 to $1.33"),
        (50.2, 63.94, 77.68, "$50.20 to $77.68"),
        (63.5, 63.94, 64.3, "$63.94"),
        (1190.0, 1234.0, 1234.0, "$1,190.00 to $1,234.00"),
        (0.0, 0.0, 0.0, "$0.00"),
        (0.0, 0.02, 0.02, "$0.00 to $0.020"),
        (None, None, None, "-"),
    ],
)
def test_a_range_whose_ends_read_nearly_the_same_is_one_figure(
    low: float | None, usd: float | None, high: float | None, words: str
) -> None:
    assert dollars_between(low, usd, high) == words


@settings(deadline=None)
@given(usd=USD, less=st.floats(0, 1), more=st.floats(0, 1))
def test_a_range_never_prints_the_same_figure_twice(usd: float, less: float, more: float) -> None:
    words = dollars_between(usd * (1 - less), usd, usd * (1 + more))
    ends = words.split(" to ")
    assert len(set(ends)) == len(ends) and (len(ends) == 2 or ends == [dollars(usd)])


def test_estimates_add_up_and_are_shared() -> None:
    both = Estimate(1.0, less_usd=0.25) + Estimate(2.0, 0.5, 1.0)
    assert both == Estimate(3.0, 0.75, 1.0) and (both.low, both.high) == (2.25, 4.0)
    assert both.times(0.5) == Estimate(1.5, 0.375, 0.5)


def test_a_bill_keeps_the_keys_that_earlier_ledgers_have() -> None:
    stored = {"bill": {"cost_usd": 2.65, "less_usd": 0.27, "minutes": 10.0, "audited": True}}
    facts = RentalFacts.from_json(stored)
    assert facts.bill == SettledBill(Estimate(2.65, 0.27), 10.0, audited=True)
    assert facts.to_json()["bill"] == {**stored["bill"], "more_usd": 0.0}


def test_a_bill_is_an_upper_bound() -> None:
    made = bill(Span((0.0, 60.0), (3600.0, 3660.0)), price_per_hour_usd=60.0)
    assert made.cost == Estimate(61.0, less_usd=2.0) and made.cost.high == 61.0


HOUR = 3600.0


@pytest.mark.parametrize(
    ("life", "seen_at", "least_usd"),
    [
        (MachineLife(booting_at=0.0), None, 0.0),
        (MachineLife(booting_at=0.0, active_at=HOUR), None, 0.0),
        (MachineLife(booting_at=0.0, active_at=HOUR, alive_at=3 * HOUR), None, 20.0),
        (MachineLife(booting_at=0.0, active_at=HOUR, alive_at=3 * HOUR), 4 * HOUR, 30.0),
        (MachineLife(booting_at=0.0, active_at=HOUR, alive_at=3 * HOUR, gone_at=5 * HOUR), None, 20.0),
        (MachineLife(), None, 50.0),
    ],
)
def test_until_there_is_a_bill_the_cost_may_be_less_by_what_nobody_saw(
    life: MachineLife, seen_at: float | None, least_usd: float
) -> None:
    found = rental_cost(50.0, None, life, 10.0, seen_at)
    assert (found.high, found.low) == pytest.approx((50.0, least_usd))


def test_a_run_has_its_share_of_its_rentals_bill() -> None:
    settled = SettledBill(Estimate(10.0, less_usd=2.0))
    assert rental_cost(2.5, settled, MachineLife(), 10.0, None) == Estimate(2.5, 0.5)


@given(skew_s=st.floats(-100_000, 100_000), minutes=st.floats(1, 3000), seen_again_s=st.floats(0, 100))
def test_a_wrong_clock_here_makes_no_bill_less_than_the_providers(
    skew_s: float, minutes: float, seen_again_s: float
) -> None:
    began, ended = 1_795_000_000.0, 1_795_000_000.0 + minutes * 60
    here = MachineLife(began, None, began + 5, ended + seen_again_s - 3, ended + seen_again_s)
    here = MachineLife(*(at and at + skew_s for at in dataclasses.astuple(here)))
    made = settled(here, (), 60.0, audited_end=ended)
    theirs_usd = math.ceil(minutes - 1e-6)
    off_usd = math.ceil(CLOCKS_DIFFER_S / 60) * 1.0 + 1 if made.audited else 0.0
    assert made.cost.high >= theirs_usd - off_usd
    assert made.cost.low <= theirs_usd + 2 + off_usd and made.cost.high <= theirs_usd + seen_again_s / 60 + 2 + off_usd
    assert not made.audited or abs(skew_s) <= CLOCKS_DIFFER_S + 100

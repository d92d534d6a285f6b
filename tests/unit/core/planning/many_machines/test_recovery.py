"""Whether a run goes on after an interruption, which market is cheapest for the rest, and what that saved."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from orchestrator.core.planning.many_machines.attempts import (
    FRUITLESS_AT_MOST,
    Standing,
    Stretch,
    expected_usd,
    hazard_per_h,
    on_demand_usd,
    why_not,
)
from orchestrator.core.planning.plan import Hours
from tests.unit.core.planning.many_machines.test_sweep_plan import PLAN as ANY

PLAN = replace(
    ANY, steps=1000, from_step=0, price_per_hour_usd=4.0, hours=Hours.of(boot=0.1, data=0.1, train=10, fetch=0.1)
)


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (Standing(1, 0, 10.0), None),
        (Standing(1, 0, None), None),
        (Standing(5, 0, 10.0), None),
        (Standing(6, 0, 10.0), "interrupted 6 times, and --max-interruptions is 5"),
        (Standing(3, FRUITLESS_AT_MOST, 10.0), "3 machines in a row"),
        (Standing(1, 0, 1.0), r"\$1.00 are left"),
        (Standing(1, 0, -2.0), r"\$0.00 are left"),
        (Standing(1, 0, 10.0, left_h=0.2), "0.2 h are left of max_hours"),
    ],
)
def test_it_goes_on_only_within_its_bounds(standing: Standing, words: str | None) -> None:
    why = why_not(PLAN, standing, 5)
    assert why is None if words is None else why is not None and re.search(words, why)


def usd(price: float, step: int, risk: float) -> float:
    return expected_usd(PLAN, price, from_step=step, risk_per_h=risk, interval_h=0.5)


def test_spot_wins_while_it_is_cheap_and_on_demand_where_it_is_always_taken_away() -> None:
    calm, stormy = hazard_per_h(0, 0.0), hazard_per_h(60, 4.0)
    assert usd(1.6, 0, calm) < usd(4.0, 0, 0.0) < usd(1.6, 0, stormy)


def test_what_is_trained_costs_nothing_again() -> None:
    assert usd(4.0, 0, 0.0) == pytest.approx(4.0 * 10.3)
    assert usd(4.0, 900, 0.0) == pytest.approx(4.0 * 1.3)


def test_on_demand_would_have_been_ready_once_and_lost_nothing() -> None:
    machine = [("acquire", 0.1), ("sync", 0.1), ("follow", 1.0), ("release", 0.1)]
    stretches = [Stretch(number, stage, hours) for number in (0, 1) for stage, hours in machine]
    assert on_demand_usd(stretches, 10.0, lost_h=0.4) == pytest.approx((2.6 - 0.2 - 0.4) * 10)

"""What a sweep takes, on one machine and on several, and where its ceiling falls."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.errors import LimitReached
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.many_machines.sweep_plan import check_sweep, shares_usd, sweep_plan
from orchestrator.core.planning.plan import Hours, Plan
from orchestrator.core.planning.planner import make_plan

PLAN = make_plan(load_recipe("quickstart"), None, machine_type("2xCPU"), None, now=0.0)


def plan(hours: float) -> Plan:
    return replace(PLAN, hours=Hours.of(boot=0.1, train=hours), price_per_hour_usd=10.0, paid=True)


def arms(count: int, hours: float = 1.0) -> list[tuple[str, int, Plan]]:
    return [(f"arm-{number}", 42, plan(hours)) for number in range(count)]


def test_only_the_first_arm_of_a_machine_pays_for_its_start() -> None:
    found = sweep_plan(arms(3), ceiling_usd=None, machines=1)
    assert [round(arm.hours, 6) for arm in found.arms] == [1.1, 1.0, 1.0]
    assert (round(found.hours, 6), round(found.cost_usd or 0, 6), found.fits) == (3.1, 31.0, 3)
    assert found.ceiling_usd == pytest.approx(62.0)


def test_the_ceiling_says_which_arms_fit() -> None:
    found = sweep_plan(arms(8), ceiling_usd=45.0, machines=1)
    assert [arm.fits for arm in found.arms] == [True] * 4 + [False] * 4
    with pytest.raises(LimitReached) as refused:
        check_sweep("mine", sweep_plan(arms(8), ceiling_usd=5.0, machines=1))
    assert "the first arm, arm-0, needs $11.00" in refused.value.message and "$5" in refused.value.message


@given(st.integers(1, 30), st.integers(1, 8), st.floats(1, 500))
def test_side_by_side_the_shares_add_up_to_the_one_ceiling(count: int, machines: int, ceiling_usd: float) -> None:
    found = sweep_plan(arms(count), ceiling_usd=ceiling_usd, machines=machines)
    assert sum(share or 0.0 for share in shares_usd(found)) == pytest.approx(ceiling_usd)
    assert found.hours <= sweep_plan(arms(count), ceiling_usd=ceiling_usd, machines=1).hours + 1e-9
    fitting = sum(arm.cost_usd or 0.0 for arm in found.arms if arm.fits)
    assert fitting <= ceiling_usd + 1e-6


def test_an_arm_that_does_not_fit_has_not_started_the_machine_of_the_next() -> None:
    long, short = plan(4.0), plan(1.0)
    found = sweep_plan([("long", 1, long), ("short", 1, short), ("short", 2, short)], ceiling_usd=20.5, machines=1)
    assert [arm.fits for arm in found.arms] == [False, True, False], "0.1 h of start and 1 h cost $11, and 1 h more $21"


@given(st.lists(st.floats(0.1, 5), min_size=1, max_size=12), st.integers(1, 4), st.floats(1, 300))
def test_what_fits_costs_no_more_than_the_ceiling_with_every_start(
    lasts_h: list[float], machines: int, ceiling_usd: float
) -> None:
    found = sweep_plan(
        [("arm", n, plan(each)) for n, each in enumerate(lasts_h)], ceiling_usd=ceiling_usd, machines=machines
    )
    started = {arm.machine for arm in found.arms if arm.fits}
    train_h = sum(each for each, arm in zip(lasts_h, found.arms, strict=True) if arm.fits)
    assert 10.0 * (train_h + 0.1 * len(started)) <= ceiling_usd + 1e-6


def test_arms_that_are_compared_share_the_machine_of_their_seed() -> None:
    pairs = [(arm, seed, plan(1.0)) for seed in (1, 2, 3) for arm in ("base", "wide")]
    found = sweep_plan(pairs, ceiling_usd=None, machines=2, by_seed=True)
    machines = {seed: {each.machine for each in found.arms if each.seed == seed} for seed in (1, 2, 3)}
    assert all(len(each) == 1 for each in machines.values()) and set.union(*machines.values()) == {0, 1}

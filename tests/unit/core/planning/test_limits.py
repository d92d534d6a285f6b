"""Limits: the tightest counts, a plan beyond one is refused, and the deadline leaves time to save what was trained."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, load_recipe
from orchestrator.core.errors import GptctlError, LimitReached, ProviderError, UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.limits import budget_s, check_plan, reserve_s, train_deadline_s
from orchestrator.core.planning.plan import Plan
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.planning.rates import MeasuredRate
from orchestrator.core.ports import Offer
from tests.support.files.repository import REPOSITORY

RECIPES = REPOSITORY / "recipes"
SLOW = MeasuredRate("8xA100-40GB", 265_573.0, 854_438_400, 1_790_000_000.0, compiled=True, precision="fp16")
"""A run of hours, so that limits of hours and of dollars cut something."""
CLOUD = HostSpec(name="cloud", provider="lambda", machine="8xA100-40GB", guard="watcher")


def plan(
    *overrides: str,
    host: HostSpec = CLOUD,
    price: float = 10.0,
    limits: Limits | None = None,
    disk_gib: int | None = None,
) -> Plan:
    recipe = load_recipe("chinchilla_163m_baseline", overrides, search=[RECIPES])
    offer = Offer("lambda", "8xA100-40GB", price, source="lambda API", disk_gib=disk_gib)
    return make_plan(recipe, host, machine_type("8xA100-40GB"), offer, now=1_795_000_000.0, limits=limits, rates=[SLOW])


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("limits.max_cost_usd=30", "max_cost_usd is 30"),
        ("limits.max_hours=2", "max_hours is 2"),
        ("limits.max_price_per_hour_usd=9.99", "max_price_per_hour_usd is 9.99"),
        ('machines."8xA100-40GB".max_cost_usd=30', "max_cost_usd is 30"),
    ],
)
def test_a_plan_beyond_a_limit_is_refused_with_both_figures(override: str, named: str) -> None:
    with pytest.raises(LimitReached) as caught:
        check_plan(plan(override))
    assert named in caught.value.message
    assert "the plan needs" in caught.value.message
    assert caught.value.exit_code == 6


def test_a_plan_within_its_limits_passes() -> None:
    inside = plan("limits.max_cost_usd=60", "limits.max_hours=5", "limits.max_price_per_hour_usd=10")
    check_plan(inside)
    assert inside.ceiling_usd == 60


def test_the_tightest_of_recipe_row_host_and_flags_counts() -> None:
    host = CLOUD.model_copy(update={"max_cost_usd": 50.0, "max_price_per_hour_usd": 20.0})
    made = plan("limits.max_cost_usd=80", "limits.max_hours=9", host=host, limits=Limits(max_hours=7, max_cost_usd=70))
    assert (made.limits.max_cost_usd, made.limits.max_hours) == (50, 7)
    assert made.limits.max_price_per_hour_usd == 20


def test_a_paid_host_without_a_limit_gets_a_ceiling_and_is_told() -> None:
    made = plan()
    assert made.ceiling_usd == pytest.approx(2 * made.cost_usd.total)  # type: ignore[operator]
    assert any(f"${made.ceiling_usd:.2f}" in warning for warning in made.warnings)
    short = plan("train.tokens=98304", price=30.0)
    assert short.ceiling_usd == pytest.approx(max(30.0, 2 * (short.cost_usd.total or 0)))


@pytest.mark.parametrize("price", [0.0, -1.0, 5_000.0])
def test_an_absurd_price_is_refused(price: float) -> None:
    with pytest.raises(ProviderError, match=f"a price of {price:.2f} USD per hour is refused"):
        check_plan(plan(price=price))


def test_a_paid_machine_without_a_price_is_refused() -> None:
    with pytest.raises(ProviderError, match="lists no price for 8xA100-40GB"):
        check_plan(dataclasses.replace(plan(), price_per_hour_usd=None))


def test_a_plan_that_does_not_fit_is_refused_before_its_limits() -> None:
    with pytest.raises(GptctlError, match="nearest that does is 96") as caught:
        check_plan(plan("train.global_batch=100", "limits.max_cost_usd=1"))
    assert caught.value.exit_code == 2


def test_a_disk_too_small_for_data_and_checkpoints_is_refused_before_buying() -> None:
    every = ("train.checkpoint_every=617", "train.keep_every=617")  # 53 of 1.9 GB, and 6.5 GB of tokens
    with pytest.raises(UserError, match=r"data 6\.1 GiB, checkpoints \d\d\d\.\d GiB; its disk has 100 GiB: lower"):
        check_plan(plan(*every, disk_gib=100))
    tight = plan(*every, disk_gib=150)
    check_plan(tight)
    assert any("the disk may be too small beside the system" in each for each in tight.warnings)
    for roomy in (plan(*every, disk_gib=1000), plan(*every), plan(disk_gib=100)):
        assert roomy.fits and not any("disk" in each for each in roomy.warnings)


def test_the_budget_ends_at_the_nearer_of_money_and_hours() -> None:
    assert budget_s(plan("limits.max_cost_usd=60")) == pytest.approx(6 * 3600)
    assert budget_s(plan("limits.max_cost_usd=60", "limits.max_hours=5")) == pytest.approx(5 * 3600)


def test_training_stops_early_enough_to_save_and_move_its_checkpoints() -> None:
    made = plan("limits.max_hours=5")
    assert reserve_s(made) == pytest.approx(300 + made.hours.fetch * 3600)
    assert train_deadline_s(made, salvage_s=120) == pytest.approx(5 * 3600 - 420)
    assert train_deadline_s(plan("limits.max_hours=0.01")) == 0


def test_nothing_limits_a_free_machine() -> None:
    box = HostSpec(name="box", machine="1x3090")
    made = plan(host=box)
    check_plan(made)
    assert (budget_s(made), train_deadline_s(made), made.ceiling_usd) == (None, None, None)


def test_max_hours_holds_on_a_machine_of_ones_own_too() -> None:
    made = plan(host=HostSpec(name="box", machine="1x3090", max_hours=14))
    assert budget_s(made) == 14 * 3600

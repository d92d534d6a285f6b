"""The hours beside the training, the price that counts, and how a run ends unattended: figures worked out by hand."""

from __future__ import annotations

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.forecast import kept_about, tokens_about
from orchestrator.core.planning.plan import Plan
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.planning.rates import MeasuredRate
from orchestrator.core.ports import Offer
from tests.support.files.repository import REPOSITORY
from trainer.arithmetic import checkpoint_bytes

RECIPES = REPOSITORY / "recipes"
SLOW = MeasuredRate("8xA100-40GB", 265_573.0, 854_438_400, 1_790_000_000.0, compiled=True, precision="fp16")
"""A run of hours, so that limits of hours and of dollars cut something."""
OFFER = Offer("lambda", "8xA100-40GB", 16.0, source="lambda API")


def plan(*overrides: str, name: str = "chinchilla_163m_baseline", machine: str = "8xA100-40GB", **more: object) -> Plan:
    recipe = load_recipe(name, overrides, search=[RECIPES])
    host, offer = more.pop("host", None), more.pop("offer", None)
    more.setdefault("rates", [SLOW])
    return make_plan(recipe, host, machine_type(machine), offer, now=1_795_000_000.0, **more)  # type: ignore[arg-type]


def cloud(**more: object) -> HostSpec:
    return HostSpec(name="cloud", provider="lambda", machine="8xA100-40GB", **more)  # type: ignore[arg-type]


def test_boot_is_the_machines_usual_wait() -> None:
    assert plan().hours.boot == 15 / 60
    assert plan(machine="2x4090").hours.boot == 8 / 60  # nobody said: the assumed one


def test_data_is_two_bytes_per_token_at_100_mb_per_second() -> None:
    assert plan().hours.data == pytest.approx(3_260_252_160 * 2 / 100e6 / 3600)
    assert plan("data.tokens=1_000_000_000").hours.data == pytest.approx(2e9 / 100e6 / 3600)


def test_fetch_is_the_kept_checkpoints_over_a_home_line_or_to_the_store() -> None:
    one = checkpoint_bytes(load_recipe("chinchilla_163m", search=[RECIPES]).model.config())
    assert plan().hours.fetch == pytest.approx(3 * one / 6e6 / 3600)  # the newest two and the best
    assert plan("train.keep_every=1000").hours.fetch == pytest.approx((3 + 33) * one / 6e6 / 3600)
    assert plan("train.checkpoint_every=33165").hours.fetch == pytest.approx(one / 6e6 / 3600)
    stored = plan(host=cloud(checkpoint_store="s3://bucket/x"), offer=OFFER)
    assert stored.hours.fetch == pytest.approx(3 * one / 100e6 / 3600)


def test_a_hosts_own_provider_sets_its_bundled_price() -> None:
    assert plan(host=cloud()).price_per_hour_usd == 15.92
    ec2 = HostSpec(name="cloud", provider="ec2", machine="8xA100-40GB")
    assert plan(host=ec2).price_per_hour_usd == 21.957642
    assert plan().price_per_hour_usd == 15.92  # no host: the cheapest


def test_a_tiny_model_is_held_up_by_its_kernels() -> None:
    made = plan(name="quickstart", machine="8xH100")
    assert made.tokens_per_second == pytest.approx(16 * 128 / (0.0005 * 4 + 0.002), rel=0.01)


def test_fp32_with_tf32_counts_tensor_cores_without_it_does_not() -> None:
    with_tf32 = plan("train.precision=fp32", rates=[])
    assert with_tf32.rate_source.endswith("of 156 TFLOP/s")
    without = plan("train.precision=fp32", "train.tf32=false", rates=[])
    assert without.rate_source.endswith("of 19.5 TFLOP/s")
    assert without.tokens_per_second < with_tf32.tokens_per_second / 2


def test_eight_cards_speak_for_one_without_a_loss() -> None:
    eight = MeasuredRate("8xA100-40GB", 800_000.0, 854_438_400, 1_790_000_000.0, compiled=True, precision="fp16")
    assert plan(machine="1xA100-40GB", rates=[eight]).tokens_per_second == pytest.approx(100_000)


AWAY = "If this computer is off when training ends:"


def test_held_until_the_budget_deadline_or_hold_h() -> None:
    host = cloud(guard="key-on-box")
    until_deadline = plan("limits.max_hours=5", host=host, offer=OFFER)
    left = 5 - (until_deadline.hours.total - until_deadline.hours.fetch)
    assert until_deadline.ending.startswith(f"{AWAY} up to ${left * 16:.2f} more, and the checkpoints are LOST")
    by_money = plan("limits.max_cost_usd=80", host=host, offer=OFFER)
    left = 80 / 16 - (by_money.hours.total - by_money.hours.fetch)
    assert by_money.ending.startswith(f"{AWAY} up to ${left * 16:.2f} more")
    cut = plan("limits.max_hours=5", "limits.hold_h=0.5", host=host, offer=OFFER)
    assert cut.ending.startswith(f"{AWAY} up to $8.00 more")


def test_under_a_watcher_the_machine_is_billed_until_it_comes() -> None:
    host = cloud(checkpoint_store="s3://bucket/x", guard="watcher")
    made = plan("limits.max_hours=5", "limits.hold_h=0.5", host=host, offer=OFFER)
    left = 5 - (made.hours.total - made.hours.fetch)
    assert made.ending == (
        f"{AWAY} up to ${16 * left:.2f} more, until the watcher ends the machine at hour 5.0; "
        "the best and latest checkpoint go to s3://bucket/x"
    )
    unguarded = plan(host=cloud(checkpoint_store="s3://bucket/x"), offer=OFFER)
    assert unguarded.ending.startswith(
        f"{AWAY} $16.00/h until you come back: nothing ends the machine. To prevent: set guard"
    )
    without_store = plan("limits.max_hours=10", host=cloud(guard="key-on-box"), offer=OFFER)
    assert without_store.ending.endswith("checkpoints are LOST. To prevent: set checkpoint_store")


def test_a_machine_of_ones_own_keeps_its_checkpoints() -> None:
    made = plan(machine="1x3090", host=HostSpec(name="box", machine="1x3090"))
    assert "checkpoints wait on the machine" in made.ending


def test_a_spot_host_is_told_whether_two_minutes_are_enough() -> None:
    host = {"name": "cloud", "provider": "ec2", "machine": "8xA100-40GB", "spot": True}
    size_mb = checkpoint_bytes(load_recipe("chinchilla_163m", search=[RECIPES]).model.config()) / 1e6
    stored = plan(host=HostSpec(checkpoint_store="s3://bucket/x", **host), offer=OFFER)  # type: ignore[arg-type]
    (words,) = [warning for warning in stored.warnings if warning.startswith("spot")]
    step_s = 10 * 3600 * stored.hours.train / stored.steps
    whole_s = 5 + step_s + size_mb / 500 + 2 * size_mb / 100
    assert "are enough: 1.96 GB are safe in" in words and f" {whole_s:.0f} s (" in words and whole_s < 60
    alone = plan(host=HostSpec(**host), offer=OFFER)  # type: ignore[arg-type]
    (words,) = [warning for warning in alone.warnings if warning.startswith("spot")]
    assert "NOT enough" in words and f"{size_mb / 6:.0f} s here" in words and "set checkpoint_store" in words
    assert not any("spot" in warning for warning in plan(host=cloud(), offer=OFFER).warnings)


def test_without_a_plan_the_recipe_alone_tells_how_much_is_kept() -> None:
    every = ("train.checkpoint_every=500", "train.keep_every=1000", "train.keep_last=2", "train.tokens=3_260_190_720")
    recipe = load_recipe("chinchilla_163m_baseline", every, search=[RECIPES])
    assert tokens_about(recipe) == 3_260_190_720
    batch = recipe.train.global_batch * recipe.model.context_length
    kept = 2 + 1 + -(-3_260_190_720 // batch) // 1000
    assert kept_about(recipe) == kept * checkpoint_bytes(recipe.model.config(), recipe.train.optimizer)
    everything = load_recipe(
        "chinchilla_163m_baseline", ["train.tokens='all'", "data.tokens=1_000_000"], search=[RECIPES]
    )
    assert tokens_about(everything) == 1_000_000

"""A plan that resumes from a checkpoint goes by what is left: every estimate of it, on every kind of host."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, Recipe, load_recipe
from orchestrator.core.datasets.windows import CHECKED_STEPS
from orchestrator.core.errors import LimitReached, UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.forecast import disk_gib, kept_bytes
from orchestrator.core.planning.limits import budget_s, check_month, check_plan, reserve_s, train_deadline_s
from orchestrator.core.planning.plan import Plan
from orchestrator.core.planning.planner import amended, make_plan, priced
from orchestrator.core.planning.remainder import unread_steps
from orchestrator.core.ports import Offer
from tests.support.files.repository import REPOSITORY
from trainer.arithmetic import checkpoint_bytes

RECIPES = REPOSITORY / "recipes"
PRICE = 16.0
HOSTS: dict[str, tuple[HostSpec | None, str]] = {
    "local": (HostSpec(name="local", provider="local"), "2xCPU"),
    "ssh": (HostSpec(name="box", machine="1x3090", price_per_hour_usd=0.11), "1x3090"),
    "lambda": (HostSpec(name="cloud", provider="lambda", machine="8xA100-40GB", guard="watcher"), "8xA100-40GB"),
    "key-on-box": (HostSpec(name="own", provider="lambda", machine="8xH100", guard="key-on-box"), "8xH100"),
    "ec2 spot": (HostSpec(name="spot", provider="ec2", machine="8xA100-40GB", spot=True, guard="self"), "8xA100-40GB"),
    "store": (
        HostSpec(name="stored", provider="lambda", machine="8xA100-40GB", guard="watcher", checkpoint_store="s3://b/x"),
        "8xA100-40GB",
    ),
    "rehearsal": (
        HostSpec(name="sim", provider="rehearsal", machine="8xA100-40GB-simulated", guard="watcher"),
        "8xA100-40GB-simulated",
    ),
    "no host": (None, "8xA100-40GB"),
}
FRACTIONS = (0.0, 0.02, 0.1, 0.5, 0.9, 0.976)
"""Of the steps that are done already."""


def recipe(*overrides: str) -> Recipe:
    return load_recipe("chinchilla_163m_baseline", ["train.keep_every=3000", *overrides], search=[RECIPES])


def plan(kind: str, from_step: int = 0, what: Recipe | None = None, limits: Limits | None = None) -> Plan:
    host, machine = HOSTS[kind]
    sold = Offer(host.provider if host else "lambda", machine, PRICE, source="API")
    offer = sold if host is None or host.paid else None
    made = machine_type(machine)
    return make_plan(what or recipe(), host, made, offer, now=1_795_000_000.0, limits=limits, from_step=from_step)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("kind", HOSTS)
def test_hours_and_dollars_are_of_the_steps_that_are_left(kind: str, fraction: float) -> None:
    whole = plan(kind)
    rest = plan(kind, math.floor(whole.steps * fraction))
    left = rest.steps_left / whole.steps
    assert (rest.steps, rest.tokens, rest.epochs) == (whole.steps, whole.tokens, whole.epochs)
    assert rest.tokens_left == rest.steps_left * whole.tokens // whole.steps
    assert rest.hours.train == pytest.approx(whole.hours.train * left)
    assert (rest.hours.boot, rest.hours.provision) == (whole.hours.boot, whole.hours.provision)
    assert rest.hours.fetch <= whole.hours.fetch
    brought_h = whole.hours.data * (left if unread_steps(recipe(), HOSTS[kind][0], rest.from_step) else 1.0)
    assert rest.hours.data == pytest.approx(brought_h, abs=0.02)  # and the checkpoint itself, about 2 GB
    price = rest.price_per_hour_usd
    assert price is not None and rest.cost_usd.total == pytest.approx(rest.hours.total * price)
    assert rest.cost_usd.train == pytest.approx(rest.hours.train * price)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("kind", HOSTS)
def test_ceiling_deadline_and_reserve_follow(kind: str, fraction: float) -> None:
    whole = plan(kind)
    rest = plan(kind, math.floor(whole.steps * fraction))
    if not rest.paid:
        assert rest.ceiling_usd is None and budget_s(rest) is None
        return
    total, price = rest.cost_usd.total, rest.price_per_hour_usd
    assert total is not None and price is not None
    assert rest.ceiling_usd == pytest.approx(max(2 * total, price))
    assert budget_s(rest) == pytest.approx(max(2 * rest.hours.total, 1.0) * 3600)
    assert reserve_s(rest) <= reserve_s(whole) and (train_deadline_s(rest) or 0) <= (train_deadline_s(whole) or 0)
    if fraction >= 0.5:
        assert rest.ending != whole.ending or "the machine ends itself" in rest.ending or HOSTS[kind][0] is None


@pytest.mark.parametrize("fraction", FRACTIONS[1:])
@pytest.mark.parametrize("kind", [kind for kind in HOSTS if kind != "local"])
def test_a_limit_that_the_remainder_keeps_refuses_the_whole_and_not_the_remainder(kind: str, fraction: float) -> None:
    whole = plan(kind)
    step = math.floor(whole.steps * fraction)
    rest = plan(kind, step)
    usd, all_usd = rest.cost_usd.total or 0.0, whole.cost_usd.total or 0.0
    between, below = Limits(max_cost_usd=(usd + all_usd) / 2), Limits(max_cost_usd=usd * 0.99)
    check_plan(plan(kind, step, limits=between))
    check_month(rest, 10.0, 10.0 + (usd + all_usd) / 2)
    with pytest.raises(LimitReached, match="max_cost_usd"):
        check_plan(plan(kind, limits=between))
    with pytest.raises(LimitReached, match="max_cost_usd"):
        check_plan(plan(kind, step, limits=below))
    hours = Limits(max_hours=(rest.hours.total + whole.hours.total) / 2)
    check_plan(plan(kind, step, limits=hours))
    with pytest.raises(LimitReached, match="max_hours"):
        check_plan(plan(kind, limits=hours))


def test_the_last_tenth_on_eight_cards_costs_about_a_tenth_and_the_boot() -> None:
    what = recipe("train.keep_every=0")
    whole = plan("lambda", what=what)
    rest = plan("lambda", whole.steps * 9 // 10, what=what)
    usd, all_usd = rest.cost_usd.total, whole.cost_usd.total
    assert usd is not None and all_usd is not None
    saved_h = whole.hours.train * (1 - rest.steps_left / whole.steps) + whole.hours.data - rest.hours.data
    assert all_usd - usd == pytest.approx(16 * saved_h), "nine tenths of the training, and the data of them"
    fixed = 16 * (rest.hours.boot + rest.hours.provision + rest.hours.fetch)  # the checkpoints at 6 MB/s
    assert usd - fixed < all_usd / 10 and fixed < 16 * 0.6


@pytest.mark.parametrize(
    ("step", "kept"),
    [(0, 2 + 1 + 11), (3000, 2 + 1 + 10), (2999, 2 + 1 + 11), (32_000, 3), (33_164, 1)],
)
def test_only_checkpoints_that_are_still_to_come_are_kept(step: int, kept: int) -> None:
    what = recipe()
    each = checkpoint_bytes(what.model.config(), what.train.optimizer)
    assert kept_bytes(what, 33_165, step) == kept * each


def test_the_disk_holds_the_checkpoint_to_resume_from_beside_what_is_kept() -> None:
    what = recipe("train.keep_every=0")
    assert disk_gib(what, 33_165, 3_260_252_160, 20_000) >= disk_gib(what, 33_165, 3_260_252_160)


@pytest.mark.parametrize("step", [33_165, 40_000])
def test_a_checkpoint_at_the_end_leaves_nothing_to_train(step: int) -> None:
    with pytest.raises(UserError, match=r"of step .* ends at step 33,165") as refused:
        plan("lambda", step)
    assert "raise train.tokens" in refused.value.hint


def test_what_amends_a_plan_keeps_to_the_remainder_and_json_has_it() -> None:
    rest = plan("lambda", 30_000)
    faster = amended(rest, rest.micro_batch, tokens_per_second=2 * rest.tokens_per_second)
    assert faster.hours.train == pytest.approx(rest.hours.train / 2)
    assert priced(rest, 32.0).cost_usd.total == pytest.approx(rest.hours.total * 32.0)
    again = Plan.from_json(json.loads(json.dumps(rest.to_json())))
    assert again == rest and again.from_step == 30_000
    older = {key: value for key, value in rest.to_json().items() if key != "from_step"}
    assert Plan.from_json(older) == dataclasses.replace(rest, from_step=0)


def test_the_machine_pulls_the_steps_by_which_the_trainer_checks_a_compiled_model() -> None:
    source = (REPOSITORY / "trainer" / "training" / "compile_check.py").read_text()  # importing it brings torch
    assert f"\nSTEPS = {CHECKED_STEPS}\n" in source


@pytest.mark.parametrize(
    ("kind", "override", "unread"),
    [
        ("lambda", "data.order='sequential'", 500),
        ("no host", "data.order='sequential'", 500),
        ("lambda", "data.order='shuffled'", 0),
        ("lambda", "data.source='books'", 0),
        ("ssh", "data.order='sequential'", 0),
        ("local", "data.order='sequential'", 0),
    ],
)
def test_tokens_before_the_checkpoint_stay_away_from_rented_machines_that_read_in_order(
    kind: str, override: str, unread: int
) -> None:
    assert unread_steps(recipe(override), HOSTS[kind][0], 500) == unread

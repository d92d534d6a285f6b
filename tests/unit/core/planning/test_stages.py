"""Stages of a recipe: what a plan counts, what the machine reads, what the trainer gets, and what is refused."""

from __future__ import annotations

import pytest

from orchestrator.core.config.recipe import Recipe, load_recipe
from orchestrator.core.datasets.windows import remainder_spans, training_window
from orchestrator.core.errors import UserError
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.plan import Plan
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.planning.run_config import train_config
from tests.support.files.repository import REPOSITORY
from trainer.arithmetic.schedule import Course
from trainer.config.config_tables import Stage
from trainer.contract import RunConfig

STAGES = "train.stages=[[0.1, 24, 1024], [0.5, 384, 256]]"


def recipe(*overrides: str) -> Recipe:
    return load_recipe("chinchilla_163m", overrides, search=[REPOSITORY / "recipes"])


def plan(what: Recipe, machine: str = "8xA100-40GB", from_step: int = 0) -> Plan:
    return make_plan(what, None, machine_type(machine), None, dataset_tokens=10**10, now=0.0, from_step=from_step)


def test_a_plan_counts_the_tokens_of_every_stage() -> None:
    made = plan(recipe(STAGES, "train.tokens=98_304_000"))
    first, rest = round(0.1 * made.steps), made.steps - round(0.1 * made.steps)
    assert made.tokens == first * 24 * 1024 + rest * 96 * 1024
    assert 98_304_000 <= made.tokens < 98_304_000 + 3 * 96 * 1024
    assert made.fits


def test_what_is_left_after_a_checkpoint_is_counted_by_stages() -> None:
    whole, rest = (plan(recipe(STAGES, "train.tokens=98_304_000"), from_step=step) for step in (0, 50))
    assert whole.tokens_left == whole.tokens
    assert rest.tokens_left == whole.tokens - 50 * 24 * 1024
    assert Plan.from_json(rest.to_json()).tokens_left == rest.tokens_left


def test_the_machine_reads_what_the_stages_take() -> None:
    what, steps = recipe(STAGES), 1000
    course = what.course(steps)
    window = training_window(what, steps, 10**10, 0)
    assert window.tokens == course.tokens(steps) == 100 * 24 * 1024 + 900 * 96 * 1024
    spans = remainder_spans(what, window, steps, 200)
    assert spans is not None
    assert spans[1][0] == course.tokens(200)


def test_the_trainer_gets_the_stages() -> None:
    what = recipe(STAGES)
    config = RunConfig.from_json(train_config(what, plan(what), train_files=["/t"]).to_json())
    assert config.train.stages == (Stage(0.1, 24, 1024), Stage(0.5, 384, 256))
    again = Recipe.from_resolved(what.resolved())
    assert again.course(100) == Course.of(config.train.stages, 100, 96, 1024)


def test_stages_that_do_not_divide_over_the_ranks_do_not_fit() -> None:
    made = plan(recipe("train.stages=[[0.1, 20, 1024]]"))
    assert not made.fits
    assert made.why == "train.stages: a global batch of 20 does not divide over 8 ranks"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[[0.5, 96, 1000]]", "must divide the model's 1024"),
        ("[[0.5, 3, 256]]", "must be a multiple of 4"),
        ("[[0.5, 96, 1024], [0.5, 48, 1024]]", "until must be above 0.5"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_anything_else(stages: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(f"train.stages={stages}")

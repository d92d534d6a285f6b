"""A sweep file as arms: grids, seeds and orders, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.config.sweep import arms_of, load_sweep
from orchestrator.core.errors import UserError
from tests.support.files.repository import REPOSITORY

BASE = f'baseline = "{REPOSITORY}/recipes/quickstart.toml"\nname = "mine"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(BASE + text)
    return path


def names(folder: Path, text: str) -> list[tuple[str, int]]:
    path = write(folder, text)
    return [(arm.name, arm.seed) for arm in arms_of(load_sweep(path), folder)]


def test_breadth_trains_every_arm_once_before_the_next_seed(tmp_path: Path) -> None:
    rates = '[set]\n"train.learning_rate" = [1e-3, 2e-3]\n'
    wide = names(tmp_path, "seeds = [7, 8]\n" + rates)
    assert wide == [
        ("quickstart", 7), ("learning_rate=0.001", 7), ("learning_rate=0.002", 7),
        ("quickstart", 8), ("learning_rate=0.001", 8), ("learning_rate=0.002", 8),
    ]  # fmt: skip
    first = names(tmp_path, 'seeds = [7, 8]\norder = "baseline-first"\n' + rates)
    assert first[:2] == [("quickstart", 7), ("quickstart", 8)] and sorted(first) == sorted(wide)


def test_a_grid_is_every_combination_and_the_recipes_say_so(tmp_path: Path) -> None:
    path = write(tmp_path, 'seeds = 2\n[set]\n"train.learning_rate" = [1e-3, 2e-3]\n"model.dropout" = [0.0, 0.1]\n')
    arms = arms_of(load_sweep(path), tmp_path)
    assert len({arm.name for arm in arms}) == 5 and len(arms) == 10
    assert {arm.recipe.train.seed for arm in arms} == {arm.seed for arm in arms}
    last = arms[-1]
    assert (last.name, last.recipe.model.dropout) == ("learning_rate=0.002,dropout=0.1", 0.1)


def test_recipes_beside_the_file_and_bundled_ones_are_variants(tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text(f'extends = "{REPOSITORY}/recipes/quickstart.toml"\n[model]\nn_embd = 192\n')
    assert ("wide", 42) in names(tmp_path, 'variants = ["wide"]\n')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("seeds = 0\n", "seeds", id="no seed"),
        pytest.param("seeds = [7, 7]\n", "must be different", id="a seed twice"),
        pytest.param("seeds = []\n", "must be different and at least one", id="an empty list"),
        pytest.param('order = "depth"\n', "order", id="an unknown order"),
        pytest.param('on_failure = "retry"\n', "on_failure", id="an unknown answer to failure"),
        pytest.param("seed = 3\n", "did you mean seeds", id="a misspelt key"),
        pytest.param('[set]\n"train.learning_rate" = []\n', "has no value", id="an empty axis"),
        pytest.param('[set]\n"train.learning_rat" = [1e-3]\n', "learning_rate", id="a misspelt field"),
        pytest.param('[set]\n"train.learning_rate" = [1e-3, 1e-3]\n', "train the same", id="a value twice"),
        pytest.param('[set]\n"train.seed" = [1]\n', "train the same", id="seeds as an axis"),
        pytest.param('variants = ["no-such"]\n', "unknown recipe no-such", id="an unknown variant"),
        pytest.param("seeds = 100\n[set]\n" + '"train.log_every" = [1, 2, 3, 4, 5, 6]\n', "at most 500", id="too many"),
        pytest.param("[stop]\nstep = 100\n", "margin", id="an early end without its margin"),
        pytest.param("[limits]\nmax_cost_usd = 0\n", "max_cost_usd", id="a ceiling of nothing"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        names(tmp_path, text)
    assert said in f"{refused.value.message} {refused.value.hint}"


def test_every_invalid_arm_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        names(tmp_path, 'variants = ["one", "two"]\n[set]\n"train.learning_rate" = [-1.0]\n')
    assert all(f"arm {name}" in refused.value.message for name in ("one", "two", "learning_rate=-1.0"))

"""A sweep file: a baseline, what is varied over it, and the ceiling over all of it, as one validated value.

Example, sweeps/interventions.toml::

    name = "interventions"
    baseline = "chinchilla_163m_baseline"
    variants = ["interventions/no_dropout", "interventions/weight_tying"]
    seeds = 3
    [limits]
    max_cost_usd = 90
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from orchestrator.core.config.recipe import Limits, Recipe, load_recipe, search_folders
from orchestrator.core.config.toml_tables import RECIPE_NAME_PATTERN, Table, build, read_toml
from orchestrator.core.errors import UserError

MOST_ARMS = 500
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class EarlyEnd(Table):
    """An arm that is worse than the baseline by more than `margin` ends early."""

    step: int = Field(ge=1, le=10**9)
    """The first step at which both are compared, by their validation losses of the same seed."""
    margin: float = Field(gt=0, le=1_000)
    """Nats per token."""


class SweepFile(Table):
    """A sweep file."""

    name: str = Field(pattern=RECIPE_NAME_PATTERN)
    """What `gptctl sweep status NAME` and the label `sweep=NAME` call it."""
    baseline: Name
    """The recipe that the others are compared with: its name, or a path beside this file."""
    variants: tuple[Name, ...] = ()
    """Recipes, each with one change over the baseline."""
    seeds: Annotated[int, Field(ge=1, le=100)] | tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = 1
    """How many seeds, counted up from the baseline's own, or which ones."""
    order: Literal["breadth", "baseline-first"] = "breadth"
    """`breadth`: every arm once, then the next seed. `baseline-first`: all its seeds, the band of noise, before the
    others."""
    rentals: int = Field(default=1, ge=1, le=64)
    """Machines side by side; --machines wins."""
    on_failure: Literal["skip", "stop"] = "skip"
    """What a failed arm means for those after it on its machine."""
    set: dict[Name, tuple[bool | int | float | str, ...]] = Field(default_factory=dict)
    """[set]: recipe fields and their values; every combination over the baseline is an arm."""
    stop: EarlyEnd | None = None
    """[stop]: ends bad arms early; absent: never."""
    limits: Limits = Limits()
    """[limits]: over the whole sweep, not per run."""


@dataclass(frozen=True)
class Arm:
    """One run of a sweep: what is varied, with which seed, and the recipe that says so."""

    name: str
    seed: int
    recipe: Recipe


def load_sweep(path: Path) -> SweepFile:
    """Reads and validates a sweep file. Raises UserError."""
    return build(SweepFile, read_toml(path, "sweep"), f"sweep {path}")


def arms_of(sweep: SweepFile, folder: Path) -> list[Arm]:
    """Every arm in the order in which they run. `folder`: of the sweep file, beside which recipes are looked for too.

    Raises UserError that names every arm that cannot be, and two that say the same.
    """
    search = (folder, *search_folders())
    baseline = load_recipe(sweep.baseline, (), search)
    named: list[tuple[str, str, tuple[str, ...]]] = [(baseline.name, sweep.baseline, ())]
    named += [(_short(each), each, ()) for each in sweep.variants]
    named += [(_words(chosen), sweep.baseline, chosen) for chosen in _grid(sweep.set)]
    seeds = _seeds(sweep, baseline)
    if len(named) * len(seeds) > MOST_ARMS:
        raise UserError(
            f"sweep {sweep.name}: {len(named) * len(seeds)} runs; at most {MOST_ARMS}", "split it into two files"
        )
    problems: list[str] = []
    by_seed: dict[int, list[Arm]] = {seed: [] for seed in seeds}
    for name, recipe_name, chosen in named:
        try:
            for seed in seeds:
                recipe = load_recipe(recipe_name, (*chosen, f"train.seed={seed}"), search)
                by_seed[seed].append(Arm(name, seed, recipe))
        except UserError as error:
            problems.append(f"arm {name}: {error.message}")
    if problems:
        raise UserError("\n".join([f"sweep {sweep.name}:", *problems]), "correct them, or take them out of the file")
    _refuse_duplicates(sweep.name, by_seed[seeds[0]])
    return in_order(by_seed, sweep.order)


def in_order(by_seed: Mapping[int, Sequence[Arm]], order: str) -> list[Arm]:
    """By seed, or the baseline's seeds first; the first arm of every seed is the baseline."""
    if order == "breadth":
        return [arm for arms in by_seed.values() for arm in arms]
    return [arms[0] for arms in by_seed.values()] + [arm for arms in by_seed.values() for arm in arms[1:]]


def _seeds(sweep: SweepFile, baseline: Recipe) -> list[int]:
    if isinstance(sweep.seeds, int):
        return [baseline.train.seed + number for number in range(sweep.seeds)]
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        raise UserError(f"sweep {sweep.name}: seeds: must be different and at least one, got {list(sweep.seeds)}")
    return list(sweep.seeds)


def _grid(values: Mapping[str, Sequence[object]]) -> list[tuple[str, ...]]:
    """Every combination as `--set` words."""
    empty = [key for key, options in values.items() if not options]
    if empty:
        raise UserError(f"sweep: set.{empty[0]}: has no value")
    axes = [[f"{key}={json.dumps(value)}" for value in options] for key, options in values.items()]
    return list(itertools.product(*axes)) if axes else []


def _short(recipe_name: str) -> str:
    return Path(recipe_name).name.removesuffix(".toml")


def _words(chosen: Sequence[str]) -> str:
    """`learning_rate=0.001,weight_decay=0.1`: the last word of each key is enough for people."""
    return ",".join(map(_key_last, chosen))


def _key_last(word: str) -> str:
    key, _, value = word.partition("=")
    return f"{key.rpartition('.')[2]}={value}"


def _refuse_duplicates(name: str, arms: Sequence[Arm]) -> None:
    """Two arms that train the same are one arm, paid twice."""
    seen: dict[str, str] = {}
    for arm in arms:
        values = {key: value for key, value in arm.recipe.resolved().items() if key not in ("name", "description")}
        digest = json.dumps(values, sort_keys=True)
        if digest in seen:
            raise UserError(f"sweep {name}: arms {seen[digest]} and {arm.name} train the same", "take one of them out")
        seen[digest] = arm.name

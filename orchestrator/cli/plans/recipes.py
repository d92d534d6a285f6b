"""`gptctl recipes`: the recipes here and those that come with gptctl, with what each trains."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.config.recipe import Recipe, find_recipe, known_recipes, load_recipe, search_folders
from orchestrator.core.errors import UserError
from orchestrator.core.formats import DASH, count
from orchestrator.core.planning.forecast import tokens_about
from trainer.arithmetic import parameter_count

COLUMNS = (
    Column("RECIPE"),
    Column("PARAMS", right=True, leaves=1),
    Column("TOKENS", right=True, leaves=2),
    Column("WHAT", leaves=3, prose=True),
)


@dataclass(frozen=True)
class Listed:
    """A recipe as the list has it; of one that cannot be read, `problem` says why and the figures are null."""

    name: str
    path: str
    description: str = ""
    parameters: int | None = None
    tokens: int | None = None
    problem: str = ""


def recipes(*, as_json: bool) -> int:
    """One row per recipe, by name."""
    found = [_listed(name) for name in known_recipes(search_folders())]
    if as_json:
        print(json.dumps({"recipes": [asdict(each) for each in found]}, indent=1))
        return 0
    rows = [[each.name, count(each.parameters), count(each.tokens), each.description or DASH] for each in found]
    screen.show_table(COLUMNS, rows)
    for each in found:
        if each.problem:
            screen.talk(f"{each.name} cannot be read: {each.problem}", style="yellow")
    screen.talk("to see its hours and dollars:", commands=["gptctl plan RECIPE"])
    return 0


def _listed(name: str) -> Listed:
    path = str(find_recipe(name, search_folders()))
    try:
        recipe = load_recipe(name)
    except UserError as error:
        return Listed(name, path, problem=error.message)
    return Listed(name, path, recipe.description or "", _parameters(recipe), tokens_about(recipe))


def _parameters(recipe: Recipe) -> int:
    return parameter_count(recipe.model.config())

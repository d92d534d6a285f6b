"""`gptctl import-recipe`: a run folder of the reference trainer as a recipe file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.cli.screen import screen
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.config.recipe_tables.reference_recipe import gpus_in, reference_recipe
from orchestrator.core.config.toml_tables import build
from orchestrator.core.errors import UserError
from orchestrator.core.typed_json import WrongJson, parse
from orchestrator.report.summary import recipe_text


def import_recipe(folder: Path, gpus: int | None, to: Path | None) -> int:
    """Writes the file and prints its path. Never replaces one."""
    model, train = (_read(folder / name) for name in ("model.json", "train.json"))
    name = folder.resolve().name
    count = gpus or gpus_in(name)
    if count is None:
        raise UserError(
            f"{folder}: nothing there says on how many GPUs it ran, and the global batch follows from it",
            f"gptctl import-recipe {folder} --gpus N",
        )
    try:
        tables = reference_recipe(name, model, train, gpus=count)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder}: model.json or train.json has a value of another type: {error}") from error
    recipe = build(Recipe, tables, f"the recipe of {folder}")
    target = to or Path("recipes") / f"{recipe.name}.toml"
    if target.exists():
        raise UserError(f"{target} exists", "name another file with --to FILE")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"# {recipe.description}.\n" + recipe_text(tables), encoding="utf-8")
    if not gpus:
        screen.talk(f"{count} GPUs, as its name says: a global batch of {recipe.train.global_batch} sequences")
    screen.talk(f"next: gptctl plan {target}")
    print(target)
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (OSError, WrongJson) as error:
        raise UserError(
            f"{path}: cannot be read: {error}", "name a run folder with model.json and train.json"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object", "name a run folder with model.json and train.json")
    return value

"""`gptctl init`: recipes and inventory come out whole, and nothing of the user's is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.config import bundled_files
from orchestrator.core.config.inventory import load_inventory
from orchestrator.core.config.recipe import known_recipes, load_recipe
from orchestrator.core.errors import UserError


def test_what_comes_out_loads(tmp_path: Path) -> None:
    copied = bundled_files.copy_to(tmp_path / "new" / "project")
    folder = tmp_path / "new" / "project"
    assert copied.kept == ()
    assert {Path("inventory.toml"), Path("recipes/quickstart.toml")} < set(copied.written)
    assert load_inventory(folder / "inventory.toml", home=tmp_path).host("local").name == "local"
    names = known_recipes([folder / "recipes"])
    assert "interventions/stack" in names
    assert all(load_recipe(name, search=[folder / "recipes"]).name for name in names)


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text("# mine\n")
    copied = bundled_files.copy_to(tmp_path)
    assert copied.kept == (Path("inventory.toml"),)
    assert (tmp_path / "inventory.toml").read_text() == "# mine\n"
    again = bundled_files.copy_to(tmp_path)
    assert again.written == ()
    assert len(again.kept) == len(copied.written) + 1


def test_a_folder_that_cannot_be_one_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        bundled_files.copy_to(tmp_path / "file")


def test_an_installed_wheel_has_them_inside_the_package(tmp_path: Path) -> None:
    """The wheel's layout, as pyproject.toml's force-include makes it."""
    package = tmp_path / "site-packages" / "orchestrator"
    (package / "templates" / "recipes").mkdir(parents=True)
    (package / "templates" / "recipes" / "one.toml").write_text("")
    (package / "templates" / "inventory.toml").write_text("")
    assert bundled_files.folder(package) == package / "templates"
    copied = bundled_files.copy_to(tmp_path / "out", source=bundled_files.folder(package))
    assert copied.written == (Path("inventory.toml"), Path("recipes/one.toml"))
    assert bundled_files.folder(tmp_path / "checkout" / "orchestrator") == tmp_path / "checkout"

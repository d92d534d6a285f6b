"""The recipes and the commented inventory that come with gptctl, and copying them out (`gptctl init`).

An installed wheel has them in orchestrator/templates/, a source checkout at its top. It must not
overwrite what a user has written.

Example: `copy_to(Path("project"))` writes project/inventory.toml and project/recipes/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import UserError

PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Copied:
    """What `copy_to` did, as paths below the folder: written now, and left alone because they were there."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def folder(package: Path = PACKAGE) -> Path:
    """The folder with `recipes/` and `inventory.toml`: inside the installed package, or beside it in a checkout."""
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent


def recipes_folder() -> Path:
    """The folder of the recipes that come with gptctl."""
    return folder() / "recipes"


def copy_to(target: Path, source: Path | None = None) -> Copied:
    """Copies recipes and inventory into `target` (made when missing). Files that exist stay as they are.

    Raises UserError when the folder cannot be written.
    """
    source = source or folder()
    recipes = sorted(path.relative_to(source) for path in (source / "recipes").rglob("*.toml"))
    written, kept = [], []
    for name in (Path("inventory.toml"), *recipes):
        path = target / name
        try:
            if path.exists():
                kept.append(name)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((source / name).read_bytes())
        except OSError as error:
            raise UserError(f"init: cannot write {path}: {error.strerror}", hint="gptctl init FOLDER") from error
        written.append(name)
    return Copied(tuple(written), tuple(kept))

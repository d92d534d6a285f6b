"""A path as token files: one file, or a folder's train* and val*, with the dataset.json beside them where there is one.

It must not open token files.

Example::

    found = find_dataset(Path("data"))
    found.files, found.tokenizer            # [data/train.safetensors, data/validation.safetensors], "gpt2"
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from trainer.tokens.digests import DATASET, DatasetJson


class NoDataset(ValueError):
    """No token files are there, or dataset.json cannot be read."""


@dataclass(frozen=True)
class TokenDataset:
    """`about` is dataset.json, empty where there is none; `files` in name order, training before validation."""

    path: Path
    files: tuple[Path, ...]
    about: DatasetJson

    @property
    def tokenizer(self) -> str | None:
        return self.about.get("tokenizer")


def find_dataset(path: Path) -> TokenDataset:
    """Raises NoDataset."""
    if path.is_file():
        return TokenDataset(path, (path,), read_about(path.parent))
    if not path.is_dir():
        raise NoDataset(f"{path} does not exist")
    files = [each for each in path.iterdir() if each.suffix in (".safetensors", ".bin") and each.is_file()]
    sides = [sorted(each for each in files if each.stem.startswith(side)) for side in ("train", "val")]
    if not any(sides):
        found = ", ".join(sorted(each.name for each in files)[:5]) or "no .safetensors or .bin file"
        raise NoDataset(f"{path} has no train* or val* token file (found: {found})")
    return TokenDataset(path, tuple(sides[0] + sides[1]), read_about(path))


def read_about(folder: Path) -> DatasetJson:
    """The folder's dataset.json; empty where there is none. Raises NoDataset for one that is no such thing."""
    try:
        about = json.loads((folder / DATASET).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NoDataset(f"{folder / DATASET} cannot be read: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("files", {}), dict):
        raise NoDataset(f"{folder / DATASET} does not describe a dataset")
    return cast(DatasetJson, about)

"""The token files at a path: one file, or a folder's train* and val*, with the dataset.json beside them, if any.

It must not open token files.

Example::

    dataset = find_dataset(Path("data"))
    dataset.files, dataset.tokenizer        # [data/train.safetensors, data/validation.safetensors], "gpt2"
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from trainer.tokens.digests import DATASET, DatasetJson


class NoDatasetError(ValueError):
    """No token files found, or an unreadable dataset.json."""


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
    """Raises NoDatasetError."""
    if path.is_file():
        return TokenDataset(path, (path,), read_dataset_json(path.parent))
    if not path.is_dir():
        raise NoDatasetError(f"{path} does not exist")
    files = [file for file in path.iterdir() if file.suffix in (".safetensors", ".bin") and file.is_file()]
    sides = [sorted(file for file in files if file.stem.startswith(side)) for side in ("train", "val")]
    if not any(sides):
        names = ", ".join(sorted(file.name for file in files)[:5]) or "no .safetensors or .bin file"
        raise NoDatasetError(f"{path} has no train* or val* token file (names: {names})")
    return TokenDataset(path, tuple(sides[0] + sides[1]), read_dataset_json(path))


def read_dataset_json(folder: Path) -> DatasetJson:
    """The folder's dataset.json; empty where there is none. Raises NoDatasetError for one that is damaged."""
    try:
        about = json.loads((folder / DATASET).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise NoDatasetError(f"{folder / DATASET} cannot be read: {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("files", {}), dict):
        raise NoDatasetError(f"{folder / DATASET} does not describe a dataset")
    return cast(DatasetJson, about)

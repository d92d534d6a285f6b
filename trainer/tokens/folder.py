"""The token files at a path: one file, or a folder's training and validation files, with their dataset.json, if any.

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

from trainer.layout.train_or_validation import SidesError, candidates, sort_files
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
    found = [each for each in (*path.glob("*"), *path.glob("*/*")) if each.is_file()]
    names = candidates([each.relative_to(path).as_posix() for each in found if not each.name.startswith(".")])
    try:
        sides = sort_files(names, all_train=len(names) == 1)
    except SidesError as error:
        raise NoDatasetError(f"{path}: {error}") from error
    files = tuple(path / name for name in (*sides.train, *sides.validation))
    return TokenDataset(path, files, read_dataset_json(files[0].parent))


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

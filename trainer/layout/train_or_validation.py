"""Which files of a dataset are for training and which for validation: by a word in the name, else in the folder.

`fineweb_train_000001.bin`, `val/000.bin` and `X_train.npy` say it. Standard library only: this computer and the machine
sort names alike. It must not look into files.

Example: `sort_files(["a_train_1.bin", "a_val_0.bin"])` -> Sides(train=("a_train_1.bin",), validation=("a_val_0.bin",))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from trainer.layout.token_layout import SUFFIXES

TRAIN, VALIDATION = "train", "validation"
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
TRAINING_WORDS = frozenset({"train", "training", "trainset", "traindata"})
VALIDATION_WORDS = frozenset({"val", "valid", "validation", "valset", "valdata", "dev"})


class SidesError(ValueError):
    """Names that do not say which side they are on."""


class Sides(NamedTuple):
    """Names in order, each side's own."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def is_token_file(name: str) -> bool:
    """Whether the suffix is one of a token file."""
    return name.endswith(SUFFIXES)


def side_of(name: str) -> str | None:
    """TRAIN, VALIDATION or None for a name with `/` between folders: the stem decides, else the nearest folder.

    Raises SidesError for a part that says both.
    """
    *folders, file = name.split("/")
    for part in (file.rpartition(".")[0] or file, *reversed(folders)):
        words = {word.lower() for word in WORDS.findall(part)}
        found = {TRAIN: words & TRAINING_WORDS, VALIDATION: words & VALIDATION_WORDS}
        if all(found.values()):
            raise SidesError(f"{name} says both {TRAIN} and {VALIDATION}")
        for side, mine in found.items():
            if mine:
                return side
    return None


def sort_files(names: Iterable[str], *, all_train: bool = False) -> Sides:
    """The names by side; of a folder, files that say neither are left out. Where none says train, all are for training
    if you chose them (`all_train`), and so is a single file that does not say validation. Raises SidesError."""
    chosen = sorted(names)
    sides = {name: side_of(name) for name in chosen}
    train = tuple(name for name in chosen if sides[name] == TRAIN)
    if train:
        return Sides(train, tuple(name for name in chosen if sides[name] == VALIDATION))
    if chosen and (all_train or list(sides.values()) == [None]):
        return Sides(tuple(chosen), ())
    raise SidesError(f"no file says train in its name or folder (found: {', '.join(chosen[:5]) or 'no token file'})")


def candidates(names: Sequence[str]) -> list[str]:
    """Of all names below a folder, the token files of the first level that has training files, else of the first."""
    files = [name for name in names if is_token_file(name)]
    levels = sorted({name.count("/") for name in files})
    for level in levels:
        here = [name for name in files if name.count("/") == level]
        if any(_says_train(name) for name in here):
            return here
    return [name for name in files if name.count("/") == levels[0]] if levels else []


def _says_train(name: str) -> bool:
    try:
        return side_of(name) == TRAIN
    except SidesError:
        return True

"""Which files are for training and which for validation: names as other programs give them, folders, and patterns."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import GptctlError
from orchestrator.datasets.remote_dataset import StoredDataset, open_dataset
from orchestrator.storage import path as path_storage
from trainer.layout.train_or_validation import SidesError, candidates, side_of, sort_files
from trainer.tokens.folder import find_dataset

IDS = np.arange(11, 411, dtype="<u2")


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, IDS)
        else:
            path.write_bytes(struct.pack("<3i", 20240520, 1, len(IDS)).ljust(1024, b"\0") + IDS.tobytes())


def opened(source: str, validation: dict[str, Any] | None = None) -> StoredDataset:
    model = {"vocab_size": 500, "context_length": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}
    recipe = Recipe.model_validate({"name": "r", "model": model, "data": {"source": source, "validation": validation}})
    return open_dataset(path_storage.storage(), recipe, source)


def names(dataset: StoredDataset) -> tuple[list[str], list[str]]:
    return [each.file.name for each in dataset.train], [each.file.name for each in dataset.validation]


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (["train.bin"], ["val.bin"]),
        (["train-00000.bin", "train-00001.bin"], ["validation.bin"]),
        (["fineweb_train_000001.bin", "fineweb_train_000002.bin"], ["fineweb_val_000000.bin"]),
        (["edufineweb_train_000001.npy"], ["edufineweb_val_000000.npy"]),
        (["X_train.bin"], ["X_val.bin"]),
        (["train/000.bin", "train/001.bin"], ["val/000.bin"]),
        (["train/shard.npy"], ["valid/shard.npy"]),
        (["TinyStoriesTrain.bin"], ["TinyStoriesDev.bin"]),
        (["trainset.bin"], ["valset.bin"]),
        (["train.bin"], []),
        (["mine.bin"], []),
    ],
)
def test_a_folder_is_sorted_alike_here_and_on_the_machine(
    tmp_path: Path, train: list[str], validation: list[str]
) -> None:
    write(tmp_path, *train, *validation)
    (tmp_path / "README.md").write_text("about train and val")
    assert names(opened(str(tmp_path))) == (train, validation)
    assert [path.relative_to(tmp_path).as_posix() for path in find_dataset(tmp_path).files] == [*train, *validation]


@pytest.mark.parametrize(
    "found", [["a.bin", "b.bin"], ["val.bin"], ["train_val.bin", "b.bin"], ["values.bin", "b.bin"]]
)
def test_names_that_do_not_say_it_are_refused_with_the_patterns_that_would(tmp_path: Path, found: list[str]) -> None:
    write(tmp_path, *found)
    with pytest.raises(GptctlError) as caught:
        opened(str(tmp_path))
    assert caught.value.exit_code == 2 and "data.validation.source" in caught.value.hint


def test_patterns_say_it_for_them(tmp_path: Path) -> None:
    write(tmp_path, "part_a.bin", "part_b.bin", "held.bin")
    dataset = opened(f"{tmp_path}/part_*.bin", {"source": f"{tmp_path}/held.bin"})
    assert names(dataset) == (["part_a.bin", "part_b.bin"], ["validation/held.bin"])
    assert names(opened(f"{tmp_path}/held.bin")) == (["held.bin"], [])
    apart = opened(f"{tmp_path}/part_*.bin", {"source": f"{tmp_path}/part_b.bin"})
    assert names(apart) == (["part_a.bin"], ["validation/part_b.bin"])


def test_a_word_counts_and_not_a_part_of_one() -> None:
    assert [side_of(name) for name in ("constraint.bin", "interval_3.bin", "valuable.bin", "strain/x.bin")] == [
        None
    ] * 4
    assert side_of("val/train_3.bin") == "train" and side_of("train/val/3.bin") == "validation"
    with pytest.raises(SidesError, match="both"):
        side_of("train_and_val.bin")


def test_the_first_level_with_training_files_counts() -> None:
    listed = ["tokenizer.bin", "data/train/0.bin", "data/val/0.bin", "README.md"]
    assert candidates(listed) == ["data/train/0.bin", "data/val/0.bin"]
    assert sort_files(candidates(listed)).validation == ("data/val/0.bin",)

"""Which files of a repository are the text."""

from __future__ import annotations

import pytest

from orchestrator.core.datasets.text_files import choose
from orchestrator.core.errors import UserError


@pytest.mark.parametrize(
    ("uri", "names", "chosen"),
    [
        ("hf://me/x", ["README.md", "data/train-1.parquet", "data/train-0.parquet", "data/test-0.parquet"],
         ["data/train-0.parquet", "data/train-1.parquet"]),
        ("hf://me/x", ["a.txt", "b.jsonl", "c.jsonl.gz"], ["b.jsonl", "c.jsonl.gz"]),
        ("hf://me/x/a.txt", ["a.txt"], ["a.txt"]),
        ("hf://me/x/*.txt", ["valid.txt", "train.txt"], ["train.txt", "valid.txt"]),
    ],
)  # fmt: skip
def test_the_training_part_of_the_best_kind(uri: str, names: list[str], chosen: list[str]) -> None:
    assert choose(names, uri) == chosen


def test_a_repository_without_text_names_what_it_has() -> None:
    with pytest.raises(UserError, match=r"holds no Parquet, JSON Lines, text or CSV file; there are: README.md, x.bin"):
        choose(["x.bin", "README.md"], "hf://me/x")

"""Of a path on a disk, what is shared shows the last part alone."""

from __future__ import annotations

import pytest

from orchestrator.report.data_source import without_folders


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("/home/ann/thesis/corpus.txt", "corpus.txt"),
        ('"source": "/data/books", "n": 1', '"source": "books", "n": 1'),
        ("gptctl run '/x y/recipe.toml' --host a", "gptctl run '/x y/recipe.toml' --host a"),
        ("~/.gptctl/runs/a/train.log: line 3", "train.log: line 3"),
        ("https://x.org/a/b.txt and s3://bucket/a/b", "https://x.org/a/b.txt and s3://bucket/a/b"),
        ("2.5 GB/s, 3/4 of it, $1.29/h", "2.5 GB/s, 3/4 of it, $1.29/h"),
    ],
)
def test_folders_go_and_addresses_stay(text: str, shared: str) -> None:
    assert without_folders(text) == shared

"""What is known of leaks and of mixtures, in words: without the folders of this computer where others read them."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.core.datasets import overlaps
from orchestrator.core.datasets.local_dataset import Prepared, prepared
from orchestrator.core.datasets.overlaps import CheckedOverlap
from orchestrator.report.data_source import shown_source

SHARED = CheckedOverlap("hf://me/train", "/home/ann/test.bin", 1.0, 1000, 150, 50_000, 7_000)
NONE = CheckedOverlap("hf://me/train", "hf://me/other", 1.0, 20, 0, 900, 0)
MADE = {
    "documents": 40,
    "excluded": {"source": "/home/ann/test.bin", "documents": 3, "tokens": 1200},
    "mixture": [
        {"source": "/home/ann/a.txt", "weight": 0.7, "share": 0.702, "documents": 30, "tokens": 7020, "ended": False},
        {"source": "hf://me/b", "weight": 0.3, "share": 0.298, "documents": 10, "tokens": 2980, "ended": True},
    ],
}


def keep(home: Path, checked: CheckedOverlap) -> None:
    (home / overlaps.FILE).write_bytes(overlaps.added(home, checked))


def test_what_came_out_is_kept_and_said(tmp_path: Path) -> None:
    assert overlaps.about(tmp_path, "hf://me/train") is None
    keep(tmp_path, SHARED)
    keep(tmp_path, NONE)
    words = overlaps.about(tmp_path, "hf://me/train")
    assert words is not None
    assert "checked against /home/ann/test.bin: 150 of its 1,000 documents (15.0%) are in it" in words
    assert "checked against hf://me/other: none of its 20 documents is in it" in words
    shown = overlaps.about(tmp_path, "hf://me/train", shown_source)
    assert shown is not None and "against test.bin" in shown and "/home/ann" not in shown


def test_a_newer_check_of_the_same_two_replaces_the_older(tmp_path: Path) -> None:
    keep(tmp_path, SHARED)
    keep(tmp_path, CheckedOverlap(SHARED.source, SHARED.against, 2.0, 1000, 0, 50_000, 0))
    assert [each.shared_documents for each in overlaps.known(tmp_path)] == [0]


def test_a_damaged_file_is_no_check(tmp_path: Path) -> None:
    for content in ("", "[]", '{"checked": 7}', '{"checked": [{"source": 1}]}', "{" * 5000):
        (tmp_path / overlaps.FILE).write_text(content)
        assert overlaps.about(tmp_path, "hf://me/train") is None


def test_a_prepared_folder_says_what_it_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(MADE))
    made = prepared(tmp_path)
    assert made.excluded_words(shown_source) == (
        "made without the documents of test.bin: 3 documents, 1,200 tokens left out"
    )
    assert made.mixture_words(shown_source) == (
        "70.2% a.txt (30 documents, 7,020 tokens); 29.8% hf://me/b (10 documents, 2,980 tokens, all that it has)"
    )
    (tmp_path / "dataset.json").write_text("torn")
    assert prepared(tmp_path) == Prepared()
    assert Prepared().mixture_words(shown_source) is None and Prepared().excluded_words(shown_source) is None

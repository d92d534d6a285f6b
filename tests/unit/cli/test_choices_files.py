"""Multiple choice by name, by URI and by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.models import choices_files
from orchestrator.core.errors import UserError


def test_a_name_is_downloaded_and_a_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, asked = tmp_path / "mine.jsonl", []
    mine.write_text("{}")

    def bring(home: Path, uri: str, tell: object) -> list[Path]:
        asked.append(uri)
        return [home / "hellaswag_val.jsonl"]

    monkeypatch.setattr(choices_files, "bring_here", bring)
    found = choices_files.choices_here(tmp_path, [str(mine), "hellaswag", "https://a.example/x.jsonl"])
    assert found == [mine, tmp_path / "hellaswag_val.jsonl", tmp_path / "hellaswag_val.jsonl"]
    assert asked == [choices_files.NAMED_CHOICES["hellaswag"], "https://a.example/x.jsonl"]


def test_a_misspelt_name_is_a_missing_file_and_the_near_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: helaswag \(did you mean hellaswag\?\)"):
        choices_files.choices_here(tmp_path, ["helaswag"])

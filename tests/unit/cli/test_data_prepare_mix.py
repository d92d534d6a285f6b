"""`gptctl data prepare --mix`, `--tokens` and `--exclude`: what reaches the trainer's program, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.data import prepare as it
from orchestrator.core.errors import UserError

WISH = it.Wish(
    [], ["books/*.txt=0.7", "notes=v2.jsonl=0.3"], 1000, "test.bin", "bytes", "safetensors", "body", "", None, 20, 100,
    1, "skip",
)  # fmt: skip


def asked(wish: it.Wish, to: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The program's arguments."""
    calls: list[list[str]] = []

    def run(name: str, arguments: Sequence[str]) -> dict[str, Any]:
        calls.append(list(arguments))
        return {}

    monkeypatch.setattr(it, "run_program", run)
    monkeypatch.setattr(it, "_show", lambda *_, **__: None)
    (to / "dataset.json").write_text("{}")
    it.prepare(wish, to, None, as_json=False)
    (found,) = calls
    return found


def test_a_mixture_reaches_the_program_by_source_and_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = asked(WISH, tmp_path, monkeypatch)
    mixed = [json.loads(each.removeprefix("--mix=")) for each in found if each.startswith("--mix=")]
    here = {"column": "body", "revision": None}
    assert mixed == [
        {"source": "books/*.txt", "weight": 0.7, "paths": [f"{tmp_path}/books/*.txt"], **here},
        {"source": "notes=v2.jsonl", "weight": 0.3, "paths": [f"{tmp_path}/notes=v2.jsonl"], **here},
    ]
    assert {"--tokens=1000", f"--exclude={tmp_path}/test.bin", "--excluded-name=test.bin"} <= {*found}
    assert not [each for each in found if each.startswith(("--source", "--named", "--documents"))]


def test_a_plain_source_may_have_a_budget_and_leave_documents_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asked(replace(WISH, sources=["/a.txt"], mix=[], exclude=None), tmp_path, monkeypatch)
    assert {"--source=/a.txt", "--named=/a.txt", "--tokens=1000"} <= {*found}
    assert not [each for each in found if each.startswith(("--mix", "--exclude"))]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mix": []}, "name the text"),
        ({"sources": ["a.txt"]}, "name the text"),
        ({"tokens": None}, "needs its budget"),
        ({"documents": 5}, "a mixture has --tokens"),
        ({"mix": ["books"]}, "not a source and its weight"),
        ({"mix": ["=0.5"]}, "not a source and its weight"),
        ({"mix": ["books=0"]}, "not a source and its weight"),
        ({"mix": ["books=-1"]}, "not a source and its weight"),
        ({"mix": ["books=nan"]}, "not a source and its weight"),
        ({"mix": ["books=inf"]}, "not a source and its weight"),
        ({"mix": ["books=half"]}, "not a source and its weight"),
    ],
)
def test_what_makes_no_mixture_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        asked(replace(WISH, **changes), tmp_path, monkeypatch)

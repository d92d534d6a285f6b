"""The fault script: spelling, counting, and the journal that outlives the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.rehearsal.faults import FOREVER, KINDS, Fault, Faults, parse
from tests.support.files.repository import REPOSITORY


def test_name_argument_and_times() -> None:
    assert parse("no-capacity@us-west-1*2, terminate-500,key-revoked,500@list*forever") == [
        Fault("no-capacity", "us-west-1", 2),
        Fault("terminate-500", "", 1),
        Fault("key-revoked", "any", FOREVER),
        Fault("500", "list", FOREVER),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "500@lunch",
        "preempt@soon",
        "429*0",
        "429*",
        "list-lag@",
        "a b",
        "bad-gpu@x",
        "no-capacity@moon",
        "list-empty@lunch+3",
    ],
)
def test_what_is_misspelt_is_refused_by_name(bad: str) -> None:
    with pytest.raises(ValueError, match=bad.split("@", maxsplit=1)[0].split("*", maxsplit=1)[0]):
        parse(bad)


def test_a_fault_fires_as_often_as_it_says_and_only_where_it_says(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.arm("500@list*2")
    assert [bool(faults.take("500", one)) for one in ("launch", "list", "list", "list")] == [False, True, True, False]
    assert [one["on"] for one in faults.as_json()["fired"]] == ["list", "list"]


def test_any_operation_is_any(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.arm("429")
    assert faults.take("429", "terminate") == Fault("429", "any", 1)


def test_what_is_left_survives_a_restart(tmp_path: Path) -> None:
    first = Faults(tmp_path)
    first.arm("429@list*3,bad-gpu,quota")
    first.take("429", "list")
    first.clear("quota")
    again = Faults(tmp_path).as_json()
    assert again["armed"] == [
        {"name": "429", "argument": "list", "left": 2},
        {"name": "bad-gpu", "argument": "", "left": 1},
    ]
    assert [one["name"] for one in again["fired"]] == ["429"]


def test_clearing_all_leaves_nothing(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.arm("429,500")
    faults.clear()
    assert faults.as_json()["armed"] == []


def test_every_fault_is_in_the_manual() -> None:
    manual = (REPOSITORY / "docs/reference/rehearsal-faults.md").read_text()
    assert [name for name in KINDS if f"`{name}" not in manual] == []


def test_a_window_opens_at_its_first_use_or_moment_and_survives_a_restart(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    faults.arm("list-empty@600,html@launch+600")
    assert not faults.during("html")
    assert 590 < faults.during("list-empty") <= 600
    faults.open_windows("launch")
    assert Faults(tmp_path).during("html") > 590
    faults.clear("html")
    assert not faults.during("html") and faults.during("list-empty")
    assert [one["name"] for one in faults.as_json()["fired"]] == ["list-empty", "html"]

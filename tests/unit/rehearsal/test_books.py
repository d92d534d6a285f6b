"""The cloud's books: what a machine owes, counted from the journal alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.rehearsal.books import books
from orchestrator.rehearsal.books.books import Instance, Journal, billed_minutes, cost_cents, instances_at, read_books

LAUNCH = {"id": "a", "name": "box", "type": "gpu_8x_a100", "region": "us-west-1", "price_cents_per_hour": 1592,
          "minute_s": 60.0, "launched_at": 0.0, "tags": [["gptctl-intent", "i1"]]}  # fmt: skip


def instance(**fields: Any) -> Instance:
    return Instance(**{**LAUNCH, "tags": (), **fields})


@pytest.mark.parametrize(
    ("seconds", "minutes", "cents"),
    [(0.0, 1, 27), (0.1, 1, 27), (60.0, 1, 27), (60.1, 2, 53), (3600.0, 60, 1592), (3600.1, 61, 1619)],
)
def test_every_started_minute_is_billed(seconds: float, minutes: int, cents: int) -> None:
    one = instance(billed_from=100.0, ended_at=100.0 + seconds)
    assert (billed_minutes(one, 9e9), cost_cents(one, 9e9)) == (minutes, cents)


def test_what_never_became_active_owes_nothing() -> None:
    assert cost_cents(instance(ended_at=900.0), 9e9) == 0


def test_what_is_alive_is_billed_until_now() -> None:
    assert billed_minutes(instance(billed_from=0.0), 119.0) == 2


def events(*kinds: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"event": "launched", "time": 10.0, "instance": LAUNCH}, *kinds]


def test_the_account_as_it_was_is_the_events_until_then() -> None:
    told = events({"event": "active", "time": 20.0, "id": "a", "ip_at": 20.0},
                  {"event": "ended", "time": 30.0, "id": "a", "status": "terminating"})  # fmt: skip
    assert instances_at(told, 9.0) == {}
    assert [instances_at(told, at)["a"].status for at in (10.0, 25.0, 30.0)] == ["booting", "active", "terminating"]


def test_ending_twice_keeps_the_first_end() -> None:
    told = events({"event": "ended", "time": 30.0, "id": "a", "status": "preempted"},
                  {"event": "ended", "time": 90.0, "id": "a", "status": "terminating"})  # fmt: skip
    assert instances_at(told)["a"].ended_at == 30.0


def test_books_count_launches_per_intent_and_leave_out_what_is_foreign(tmp_path: Path) -> None:
    journal = Journal(tmp_path / books.FILE_NAME)
    for one in (LAUNCH, {**LAUNCH, "id": "b"}, {**LAUNCH, "id": "c", "foreign": True, "tags": []}):
        journal.append("launched", instance=one)
        journal.append("active", id=one["id"], ip_at=0.0)
    now = journal.events[-1]["time"] + 61
    found = read_books(tmp_path, now)
    assert found["launches_by_intent"] == {"i1": 2}
    assert found["total_cents"] == 2 * 53
    assert found["alive"] == ["a", "b"]
    assert [one["cost_cents"] for one in found["instances"]] == [53, 53, 53]


def test_a_torn_last_line_never_happened(tmp_path: Path) -> None:
    file = tmp_path / books.FILE_NAME
    Journal(file).append("launched", instance=LAUNCH)
    with file.open("ab") as torn:
        torn.write(b'{"event": "active", "id": "a", "ti')
    assert read_books(tmp_path)["instances"][0]["active_at"] is None
    Journal(file).append("active", id="a", ip_at=0.0)
    assert read_books(tmp_path)["instances"][0]["active_at"] is not None


def test_time_never_runs_backwards_in_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j")
    first = journal.append("x")["time"]
    monkeypatch.setattr(books.time, "time", lambda: first - 600)
    assert journal.append("y")["time"] == first

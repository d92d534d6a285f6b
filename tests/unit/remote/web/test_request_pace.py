"""Turns at an API, booked in a file by any number of processes."""

from __future__ import annotations

import json
import stat
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.core.errors import UserError
from orchestrator.remote.web.request_pace import IN_FLIGHT_S, Pace


def taken(pace: Pace, *kinds: str) -> float:
    with pace.turn(*kinds):
        return time.time()


def test_turns_are_apart(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "deep" / "pace.json", {"request": 0.1})
    moments = [taken(pace, "request") for _ in range(4)]
    assert min(later - earlier for earlier, later in pairwise(moments)) >= 0.1
    assert stat.S_IMODE(pace.file.stat().st_mode) == 0o600


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    moments: list[float] = []
    pace = Pace(tmp_path / "pace.json", {"request": 0.1})
    threads = [threading.Thread(target=lambda: moments.append(taken(pace, "request"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moments) == 4
    assert max(moments) - min(moments) >= 0.3


def test_kinds_have_their_own_pauses(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "pace.json", {"request": 0.1, "launch": 300.0})
    taken(pace, "request", "launch")
    taken(pace, "request")
    assert 250 < pace._take(["request", "launch"]) <= 300
    taken(pace, "free")


def test_a_turn_under_way_holds_the_others_up_and_a_dead_one_not_for_long(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "pace.json", {"request": 60.0})
    assert pace._take(["request"]) == 0
    assert 60 < pace._take(["request"]) <= 60 + IN_FLIGHT_S


def test_where_nothing_is_paced_nothing_is_written(tmp_path: Path) -> None:
    taken(Pace(tmp_path / "pace.json"), "request")
    assert list(tmp_path.iterdir()) == []


def test_a_pause_counts_from_the_end_of_the_turn(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "pace.json", {"request": 0.2})
    with pace.turn("request"):
        time.sleep(0.15)
        ended = time.time()
    assert taken(pace, "request") - ended >= 0.2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"request": "x"}', '{"request": 4102444800}', "null"])
def test_a_file_that_makes_no_sense_stops_nobody(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pace.json"
    file.write_text(content)
    assert Pace(file, {"request": 300.0})._take(["request"]) == 0
    assert json.loads(file.read_text())["request"] == pytest.approx(time.time(), abs=60)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        taken(Pace(tmp_path / "file" / "pace.json", {"request": 1.0}), "request")

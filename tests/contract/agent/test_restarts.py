"""A training that dies on a real machine starts again by itself, and says so; what asks it to end is obeyed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box

ENDLESS = 100_000


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def test_a_killed_rank_leads_to_one_more_start_within_the_bound(box: Box) -> None:
    box.start(steps=ENDLESS, spec_restarts=1)
    box.until_steps(3)
    for rank in box.ranks():
        os.kill(rank, signal.SIGKILL)
    until(lambda: box.starts() == 2)
    until(lambda: len(box.ranks()) == 2)
    said = box.call("status", run="r-1")["runs"]["r-1"]["deaths"]
    assert [(each["number"], each["pause_s"]) for each in said] == [(1, 2.0)] and said[0]["step"] >= 3
    seen = len(box.metrics())
    box.until_steps(seen + 3)
    for rank in box.ranks():
        os.kill(rank, signal.SIGKILL)
    ended = box.wait()
    assert ended["outcome"] == "failed" and box.starts() == 2
    assert "it died 2 times, and restarts is 1" in ended["deaths"][-1]["reason"]


def test_what_fails_before_its_first_step_and_what_is_stopped_start_no_more(box: Box) -> None:
    box.start(run="r-1", steps=ENDLESS, fail_at=1, spec_restarts=3)
    assert box.wait("r-1")["outcome"] == "failed" and box.starts("r-1") == 1
    box.start(run="r-2", steps=ENDLESS, spec_restarts=3)
    box.until_steps(3, "r-2")
    assert box.call("stop", run="r-2")["exit"]["outcome"] == "stopped" and box.starts("r-2") == 1


def test_a_supervisor_killed_with_its_training_does_not_forget_the_restart(box: Box) -> None:
    box.start(steps=60, spec_restarts=1)
    box.until_steps(3)
    box.kill_everything()
    box.call("start", **box.train_request("r-1", steps=60, spec_restarts=1))
    assert box.wait()["outcome"] == "finished" and box.starts() == 2


def test_a_supervisor_killed_in_the_pause_counts_the_death_once(box: Box) -> None:
    """And a reboot then: nothing was started since."""
    box.start(steps=ENDLESS, spec_restarts=3)
    box.until_steps(3)
    for rank in box.ranks():
        os.kill(rank, signal.SIGKILL)
    until((box.folder() / "deaths.jsonl").exists)
    box.kill_everything()
    for _ in range(2):
        box.call("start", **box.train_request("r-1", steps=ENDLESS, spec_restarts=3))
    until(lambda: box.starts() == 2)
    box.until_steps(len(box.metrics()) + 3)
    assert [each["number"] for each in box.call("status", run="r-1")["runs"]["r-1"]["deaths"]] == [1]
    assert box.call("stop", run="r-1")["exit"]["outcome"] == "stopped"

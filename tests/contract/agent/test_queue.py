"""The queue of a machine, on its real processes: each training starts once, in order, whoever is killed on the way."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.system import processes
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box

ENDLESS = 100_000
"""Steps of a training that a test stops."""


RUNNER = "queue/state.json.runner"


def kill_runner(box: Box) -> None:
    """SIGKILL, and seen to be gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        runner = json.loads((box.root / RUNNER).read_text())
        os.kill(runner["pid"], signal.SIGKILL)
        until(lambda: not processes.is_alive(runner))


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    kill_runner(box)
    box.end()


def enqueue(box: Box, run: str, *, steps: int = 5, **config: Any) -> dict[str, Any]:
    return box.call("enqueue", **box.train_request(run, steps=steps, **config))


def order(box: Box, **request: Any) -> list[str]:
    return [entry["run"] for entry in box.call("queue-order", **request)["queue"]]


def test_trainings_start_one_after_the_other_and_each_once(box: Box) -> None:
    assert enqueue(box, "r-1", steps=ENDLESS)["state"] == "queued"
    until(lambda: box.job("r-1")["state"] == "running")
    for run in ("r-2", "r-3", "r-2"):  # the second r-2: a laptop that asks again
        assert enqueue(box, run)["state"] == "queued"
    assert order(box) == ["r-2", "r-3"] and box.call("status", run="r-3")["runs"]["r-3"]["ahead"] == 1
    assert order(box, move="r-3", to=1) == ["r-3", "r-2"]
    box.call("stop", run="r-1")
    records = [box.wait(run) for run in ("r-1", "r-3", "r-2")]
    assert [each["outcome"] for each in records] == ["stopped", "finished", "finished"]
    assert all(later["started_at"] >= sooner["ended_at"] for sooner, later in itertools.pairwise(records))
    assert [box.starts(run) for run in ("r-1", "r-2", "r-3")] == [1, 1, 1]
    assert enqueue(box, "r-2")["state"] == "ended"
    until(lambda: not (box.root / RUNNER).exists())


def test_a_killed_queue_comes_back_by_the_training_that_runs(box: Box) -> None:
    enqueue(box, "r-1", steps=ENDLESS)
    until(lambda: box.job("r-1")["state"] == "running")
    enqueue(box, "r-2")
    until((box.root / RUNNER).exists)
    kill_runner(box)
    box.call("stop", run="r-1")
    assert box.wait("r-2")["outcome"] == "finished" and box.starts("r-2") == 1


def test_two_laptops_that_add_at_once_lose_no_training(box: Box) -> None:
    enqueue(box, "r-0", steps=ENDLESS)
    until(lambda: box.job("r-0")["state"] == "running")
    adding = [box.background("enqueue", **box.train_request(f"r-{number // 2}", steps=2)) for number in range(2, 10)]
    answers = [json.loads(each.communicate(timeout=240)[0]) for each in adding]
    assert {answer["state"] for answer in answers} == {"queued"} and len(order(box)) == 4
    box.call("stop", run="r-0")
    for run in ("r-1", "r-2", "r-3", "r-4"):
        assert box.wait(run)["outcome"] == "finished" and box.starts(run) == 1


def test_what_waits_can_be_dropped_and_stopped_and_what_runs_cannot_be_dropped(box: Box) -> None:
    enqueue(box, "r-1", steps=1000)
    until(lambda: box.job("r-1")["state"] == "running")
    enqueue(box, "r-2")
    enqueue(box, "r-3")
    assert order(box, drop="r-2") == ["r-3"]
    assert box.call("stop", run="r-3")["exit"]["outcome"] == "stopped"
    assert (box.wait("r-2")["reason"], box.wait("r-3")["reason"]) == ("dropped from the queue", "asked to stop")
    refused = box.call("queue-order", drop="r-1")["error"]
    assert refused["code"] == "no-such-run" and "running" in refused["message"] and "gptctl stop r-1" in refused["hint"]
    assert box.call("queue-order", move="r-9")["error"]["code"] == "no-such-run"
    assert box.call("stop", run="r-1")["exit"]["outcome"] == "stopped"
    assert not (box.folder("r-2") / "starts.jsonl").exists()


def test_a_failure_skips_or_stops_its_group_as_agreed(box: Box) -> None:
    enqueue(box, "r-1", steps=30, fail_at=5)
    for run, group in (("r-2", "other"), ("r-3", "mine"), ("r-4", "mine")):
        enqueue(box, run, spec_queue={"group": group, "arm": run, "on_failure": "stop"})
    assert box.wait("r-1")["outcome"] == "failed"
    assert {box.wait(run)["outcome"] for run in ("r-2", "r-3", "r-4")} == {"finished"}  # r-1 belongs to no group
    enqueue(box, "r-5", steps=ENDLESS, fail_at=100, spec_queue={"group": "mine", "on_failure": "stop"})
    enqueue(box, "r-6", spec_queue={"group": "mine", "on_failure": "stop"})
    assert box.wait("r-6")["outcome"] == "never_started" and "r-5 failed" in box.wait("r-6")["reason"]


def test_what_does_not_fit_under_its_groups_ceiling_never_starts(box: Box) -> None:
    terms = {"group": "mine", "needs_s": 3600.0, "group_s": 1800.0}
    enqueue(box, "r-1", spec_queue=terms)
    enqueue(box, "r-2", spec_queue={**terms, "needs_s": 1.0})
    assert box.wait("r-1")["outcome"] == "limit" and "1.0 h, and 0.5 h are left" in box.wait("r-1")["reason"]
    assert box.wait("r-2")["outcome"] == "finished"


def test_an_arm_that_is_worse_than_the_baseline_ends_early(box: Box) -> None:
    for run, loss in (("base", 1.0), ("arm", 2.0)):
        folder = box.root / "runs" / run
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_text(json.dumps({"event": "validated", "step": 10, "val_loss": loss}) + "\n")
    rule = {"baseline": "base", "step": 10, "margin": 0.5}
    started = time.monotonic()
    enqueue(box, "arm", steps=100_000, spec_queue={"group": "g", "arm": "arm", "stop": rule})
    assert box.wait("arm")["outcome"] == "stopped" and "above the baseline's" in box.wait("arm")["reason"]
    assert time.monotonic() - started < 200

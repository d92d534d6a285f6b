"""Stopping, leases, the watchdog and release: how the agent ends what it started."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.job.watchdog import StepWatch
from orchestrator.agent.system import lease, processes
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box

QUICK_WATCH = {"factor": 20, "least_s": 1.0, "first_step_s": 2.0, "grace_s": 1.0}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def test_stop_asks_the_ranks_and_lets_the_trainer_decide(box: Box) -> None:
    box.start(steps=5000)
    box.until_ranks_listen()
    answer = box.call("stop", run="r-1", grace_s=30)
    assert answer["state"] == "ended"
    ended = answer["exit"]
    assert (ended["outcome"], ended["code"], ended["reason"]) == ("stopped", 0, "asked to stop")
    assert ended["trainer"]["outcome"] == "stopped" and ended["trainer"]["step"] == len(box.metrics())
    assert (box.root / "runs" / "r-1" / "stop").exists()
    assert box.call("stop", run="r-1") == answer


def test_stop_of_a_frozen_rank_ends_after_the_grace_and_says_so(box: Box) -> None:
    box.start(steps=5000)
    until(lambda: len(box.ranks()) == 2)
    box.until_steps(3)
    for rank in box.ranks():
        os.kill(rank, signal.SIGSTOP)
    ended = box.call("stop", run="r-1", grace_s=1)["exit"]
    assert ended["outcome"] == "stopped" and ended["trainer"] is None
    assert "before it wrote its exit.json" in ended["reason"]
    assert box.processes() == []


def test_stop_works_without_a_supervisor(box: Box) -> None:
    box.start(steps=5000)
    box.until_steps(2)
    box.kill_supervisor()
    until(lambda: not box.job()["supervised"])
    ended = box.call("stop", run="r-1", grace_s=30)["exit"]
    assert ended["outcome"] == "stopped" and ended["trainer"]["outcome"] == "stopped"


def test_a_training_that_finished_while_asked_to_stop_is_finished(box: Box) -> None:
    box.start(steps=3, step_s=0.3)
    box.until_steps(2)
    for rank in box.ranks():
        os.kill(rank, signal.SIGSTOP)
    stopping = box.background("stop", run="r-1", grace_s=30)
    until((box.root / "runs" / "r-1" / "stop").exists)
    # What a trainer does that is through with its last step when the request comes.
    (box.root / "runs" / "r-1" / "exit.json").write_text(json.dumps({"outcome": "finished", "step": 3}))
    processes.kill_all(str(box.folder()))
    answer = json.loads(stopping.communicate(timeout=240)[0].splitlines()[-1])
    assert answer["exit"]["outcome"] == "finished" and answer["exit"]["reason"] == ""


def test_stop_says_heartbeats_while_it_waits(box: Box) -> None:
    box.start(steps=5000)
    until(lambda: len(box.ranks()) == 2)
    for rank in box.ranks():
        os.kill(rank, signal.SIGSTOP)
    kinds = [line.get("kind", "answer") for line in box.lines("stop", run="r-1", grace_s=5)]
    assert kinds[0] == "heartbeat" and kinds[-1] == "answer"


def test_stop_of_nothing_is_none(box: Box) -> None:
    assert box.call("stop", run="r-9") == {"state": "none", "exit": None}
    box.start()
    assert box.call("stop", run="r-1", job="evaluate") == {"state": "none", "exit": None}


def test_a_frozen_training_is_failed_by_the_watchdog_with_its_stacks(box: Box) -> None:
    box.start(steps=5000, spec_watchdog=QUICK_WATCH)
    until(lambda: len(box.ranks()) == 2)
    box.until_steps(3)
    writer = next(rank for rank in box.ranks() if processes.environment(rank)["LOCAL_RANK"] == "0")
    os.kill(writer, signal.SIGSTOP)
    ended = box.wait()
    assert ended["outcome"] == "failed"
    assert ended["reason"].startswith("no step for ")
    # The other rank still runs, so its stack is there; SIGUSR1 waits for a stopped one.
    log = (box.root / "runs" / "r-1" / "train.log").read_text()
    assert "most recent call first" in log and "trainer/__main__.py" in log


def test_a_training_without_a_first_step_is_failed(box: Box) -> None:
    box.start(steps=3, step_s=600, spec_watchdog=QUICK_WATCH)
    ended = box.wait()
    assert ended["outcome"] == "failed" and "no step for" in ended["reason"]


def test_a_loss_that_is_no_number_ends_the_training(box: Box) -> None:
    box.start(steps=5000, loss=float("nan"))
    ended = box.wait()
    assert ended["outcome"] == "failed" and "not finite" in ended["reason"]
    assert any("not finite" in warning for warning in box.call("status", run="r-1")["runs"]["r-1"]["warnings"])


def test_the_watchdog_measures_against_the_usual_interval(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    watch = StepWatch(str(tmp_path), {"factor": 20, "least_s": 120, "first_step_s": 900}, now_s=0.0)
    assert watch.verdict(899.0) is None
    for step in range(1, 6):
        metrics.write_text('{"step": 1, "loss": 1.0}\n' * step)
        assert watch.verdict(1000.0 + 50.0 * step) is None
    assert watch.limit_s() == 1000.0
    assert watch.verdict(1250.0 + 999.0) is None
    (tmp_path / "events.jsonl").write_text('{"event": "validated"}\n')
    assert watch.verdict(1250.0 + 1001.0) is None
    assert watch.verdict(1250.0 + 1001.0 + 1001.0) == "no step for 1001 s (limit 1000 s)"


def test_a_lease_that_ran_out_ends_the_job_as_limit(box: Box) -> None:
    box.start(steps=3, step_s=600, spec_lease_s=1.0, spec_grace_s=1)
    ended = box.wait()
    assert ended["outcome"] == "limit" and "lease" in ended["reason"]
    assert ended["trainer"] is None or ended["trainer"]["outcome"] == "stopped"


def test_progress_renews_the_lease(box: Box) -> None:
    box.start(steps=700, spec_lease_s=5)
    ended = box.wait()
    assert ended["outcome"] == "finished" and ended["duration_s"] > 5


def test_a_follower_renews_the_lease_of_a_job_without_progress(box: Box) -> None:
    idle = box.program_request("import time; time.sleep(8); print('{}')")
    box.call("start", **{**idle, "spec": {**idle["spec"], "lease_s": 5}})
    ended = box.lines("follow", run="r-1", job="prepare")[-1]["exit"]
    assert ended["outcome"] == "finished" and ended["duration_s"] > 5


def test_the_deadline_ends_the_job_in_time_for_its_grace(box: Box) -> None:
    box.start(steps=5000, spec_deadline_s=22.0, spec_grace_s=20)
    ended = box.wait()
    assert ended["outcome"] == "limit" and "deadline" in ended["reason"]
    assert ended["trainer"]["outcome"] == "stopped"


def test_renew_never_passes_the_deadline_and_never_shortens(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert lease.renew(folder, 100.0, None) == {"left_s": 100.0, "deadline_left_s": None}
    assert lease.renew(folder, 10.0, None)["left_s"] == pytest.approx(100.0, abs=5)
    assert lease.renew(folder, 1000.0, 50.0) == {"left_s": 50.0, "deadline_left_s": 50.0}
    assert lease.renew(folder, 1000.0, None)["left_s"] == pytest.approx(50.0, abs=5)
    assert lease.renew(folder, 1000.0, 2000.0) == {"left_s": 1000.0, "deadline_left_s": 2000.0}
    lease.forget(folder)
    assert lease.read(folder) is None


def test_a_lease_counts_time_asleep_and_survives_a_reboot(tmp_path: Path) -> None:
    lease.renew(str(tmp_path), 100.0, 200.0)
    stored = json.loads((tmp_path / "lease.json").read_text())
    (tmp_path / "lease.json").write_text(json.dumps({**stored, "written_boottime": stored["written_boottime"] - 60}))
    left = lease.read(str(tmp_path))
    assert left is not None and left["left_s"] == pytest.approx(40.0, abs=5)
    (tmp_path / "lease.json").write_text(json.dumps({**stored, "boot_id": "the boot before"}))
    left = lease.read(str(tmp_path))
    assert left is not None and left["left_s"] == pytest.approx(100.0 - time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


@pytest.mark.parametrize("torn", ["", "{", "{}", '{"left_s": "x"}'])
def test_a_torn_lease_reads_as_none(tmp_path: Path, torn: str) -> None:
    (tmp_path / "lease.json").write_text(torn)
    assert lease.read(str(tmp_path)) is None


def test_renew_over_the_verb(box: Box) -> None:
    box.start(steps=5000)
    assert box.call("renew", run="r-1", duration_s=7200)["lease"]["left_s"] == 7200
    assert box.call("renew", run="r-1", duration_s=7200, deadline_s=600)["lease"]["left_s"] == 600
    left = box.call("status", run="r-1")["runs"]["r-1"]["lease"]
    assert 500 < left["left_s"] <= 600
    assert box.call("renew", run="r-7", duration_s=1)["error"]["code"] == "no-such-run"
    assert box.call("renew", run="r-1", duration_s="soon")["error"]["code"] == "bad-request"


def test_release_ends_every_job_and_keeps_what_was_made(box: Box) -> None:
    box.start(steps=5000)
    box.call("start", **box.program_request("import time; time.sleep(600)"))
    box.until_steps(2)
    answer = box.call("release", run="r-1")
    assert answer["released"] and sorted(answer["ended"]) == ["prepare", "train"]
    assert box.processes() == [] and box.processes(job="prepare") == []
    assert box.metrics() and not (box.root / "jobs" / "r-1" / "lease.json").exists()
    assert box.call("facts")["locks"] == [] or all(lock["lock"] != "cpu.lock" for lock in box.call("facts")["locks"])
    assert box.call("release", run="r-1")["released"]
    assert box.call("release", run="r-8") == {"released": True, "ended": []}

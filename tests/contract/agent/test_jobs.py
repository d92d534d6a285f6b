"""Jobs of the agent: started exactly once, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.system import processes
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box

STEPS, STEP_S = 400, 0.05
"""Twenty seconds in few steps: enough for every look at a training that is to be seen at its end."""
SEEDS = [0, pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly)]
ENDLESS = 100_000
"""Of a training that has to last while others are killed: ten seconds."""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def test_a_training_runs_once_and_leaves_its_exit(box: Box) -> None:
    assert box.start(steps=10)["state"] == "started"
    assert box.start(steps=10)["state"] in ("running", "ended")
    ended = box.wait()
    assert (ended["outcome"], ended["code"], ended["signal"]) == ("finished", 0, None)
    assert ended["trainer"]["step"] == 10
    assert any("rank 1 of r-1" in line for line in ended["last_lines"])
    assert box.start(steps=10) == {"job": "train", "run": "r-1", "state": "ended", "digest": "d", "exit": ended}
    assert box.starts() == 1
    assert [line["step"] for line in box.metrics()] == list(range(1, 11))
    assert box.processes() == []


def test_ten_starts_at_once_start_one_training(box: Box) -> None:
    request = box.train_request("r-1", steps=30)
    starters = [box.background("start", **request) for _ in range(10)]
    states = [json.loads(starter.communicate(timeout=240)[0])["state"] for starter in starters]
    assert sorted(states)[-1] == "started" and states.count("started") == 1
    assert box.wait()["outcome"] == "finished"
    assert box.starts() == 1
    assert len(box.metrics()) == 30


@pytest.mark.parametrize("seed", SEEDS)
def test_a_starter_killed_at_any_moment_leads_to_one_training(box: Box, seed: int) -> None:
    chance = random.Random(seed)
    request = box.train_request("r-1", steps=40)
    for _ in range(6):
        starter = box.background("start", **request)
        time.sleep(chance.uniform(0.0, 0.25))
        starter.kill()
        starter.communicate()
    assert box.call("start", **request)["state"] in ("started", "running", "ended")
    assert box.wait()["outcome"] == "finished"
    assert box.starts() == 1
    assert [line["step"] for line in box.metrics()] == list(range(1, 41))


def next_supervisor(box: Box, starter: subprocess.Popen[bytes]) -> int:
    """Its pid as soon as it has said that it lives; the last one's if the starter needed none."""
    state = box.root / "jobs" / "r-1" / "train" / "state.json"
    until(lambda: starter.poll() is not None or (state.exists() and processes.is_alive(box.state()["supervisor"])))
    return int(box.state()["supervisor"]["pid"])


@pytest.mark.parametrize("seed", SEEDS)
def test_supervisors_killed_at_any_moment_lead_to_one_training(box: Box, seed: int) -> None:
    chance = random.Random(seed)
    request = box.train_request("r-1", steps=60)
    for _ in range(5):
        starter = box.background("start", **request)
        supervisor = next_supervisor(box, starter)
        time.sleep(chance.uniform(0.0, 0.03))
        processes.send([supervisor], signal.SIGKILL)
        starter.communicate()
    box.call("start", **request)
    assert box.wait()["outcome"] == "finished"
    assert box.starts() == 1
    assert [line["step"] for line in box.metrics()] == list(range(1, 61))


def test_another_digest_is_refused_and_another_run_names_the_holder(box: Box) -> None:
    box.start(steps=ENDLESS)
    assert box.start(digest="e", steps=ENDLESS)["error"]["code"] == "digest-differs"
    refused = box.start(run="r-2")["error"]
    assert refused["code"] == "cpu-taken"
    assert "run r-1" in refused["message"] and str(box.state()["supervisor"]["pid"]) in refused["message"]
    assert [lock["run"] for lock in box.call("facts")["locks"] if lock["lock"] == "cpu.lock"] == ["r-1"]
    box.call("stop", run="r-1", grace_s=20)
    # The refusal left nothing behind: with the machine free, even another digest may start.
    assert box.start(run="r-2", digest="f")["state"] == "started"
    assert box.wait("r-2")["outcome"] == "finished"


def test_the_job_is_in_a_session_of_its_own(box: Box) -> None:
    box.start(steps=ENDLESS)
    state = box.state()
    for process in (state["supervisor"]["pid"], state["program"]["pid"]):
        assert os.getsid(process) != os.getsid(0)
    assert os.readlink(f"/proc/{state['supervisor']['pid']}/fd/0") == os.devnull
    assert processes.parent(state["supervisor"]["pid"]) != os.getpid()


def test_a_killed_supervisor_is_replaced_and_the_training_goes_on(box: Box) -> None:
    box.start(steps=STEPS, step_s=STEP_S)
    box.until_steps(5)
    first = box.state()
    box.kill_supervisor()
    until(lambda: not box.job()["supervised"])
    assert box.job()["state"] == "running"
    assert box.start(steps=STEPS, step_s=STEP_S)["state"] == "running"
    second = box.state()
    assert second["program"] == first["program"]
    assert second["supervisor"] != first["supervisor"] and box.job()["supervised"]
    ended = box.wait()
    assert (ended["outcome"], ended["trainer"]["step"], ended["code"]) == ("finished", STEPS, None)
    assert box.starts() == 1
    assert len(box.metrics()) == STEPS


def test_a_cpu_stays_taken_while_the_training_of_a_killed_supervisor_runs(box: Box) -> None:
    box.start(steps=ENDLESS)
    box.kill_supervisor()
    until(lambda: not box.job()["supervised"])
    assert box.start(run="r-2")["error"]["code"] == "cpu-taken"


def test_everything_killed_is_lost_until_somebody_starts_it_again(box: Box) -> None:
    box.start(steps=ENDLESS)
    box.until_steps(3)
    box.kill_everything()
    lost = box.job()
    assert (lost["state"], lost["exit"], lost["starts"]) == ("lost", None, 1)
    answer = box.start(steps=ENDLESS)
    assert answer["state"] == "ended"
    assert answer["exit"]["outcome"] == "failed" and "no exit record" in answer["exit"]["reason"]
    assert box.starts() == 1


def test_ranks_that_outlive_torchrun_are_cleared_away(box: Box) -> None:
    box.start(steps=ENDLESS)
    until(lambda: len(box.ranks()) == 2)
    os.kill(box.state()["program"]["pid"], signal.SIGKILL)
    ended = box.wait()
    assert (ended["outcome"], ended["signal"], ended["reason"]) == ("failed", "SIGKILL", "killed by SIGKILL")
    assert box.processes() == []


def test_one_rank_alone_runs_without_torchrun(box: Box) -> None:
    box.start(steps=ENDLESS, spec_ranks=1)
    box.until_steps(3)
    program = box.state()["program"]["pid"]
    assert box.ranks() == box.processes() == [program]
    os.kill(program, signal.SIGKILL)
    ended = box.wait()
    assert (ended["outcome"], ended["signal"], ended["reason"]) == ("failed", "SIGKILL", "killed by SIGKILL")
    box.start(run="r-2", steps=ENDLESS, spec_ranks=1)
    box.until_steps(3, "r-2")
    ended = box.call("stop", run="r-2", grace_s=20)["exit"]
    assert (ended["outcome"], ended["code"], ended["trainer"]["signals"]) == ("stopped", 0, [signal.SIGTERM])
    box.start(run="r-3", spec_ranks=1, fail_at=4)
    ended = box.wait("r-3")
    assert (ended["outcome"], ended["code"]) == ("failed", 1) and "out of memory" in ended["last_lines"][-1]


def test_a_failing_rank_fails_the_training_with_its_last_words(box: Box) -> None:
    box.start(steps=10, fail_at=4)
    ended = box.wait()
    assert (ended["outcome"], ended["code"]) == ("failed", 1)
    assert any("out of memory" in line for line in ended["last_lines"])


@pytest.mark.parametrize(
    "torn", ['{"supervisor": {"pid"', *(pytest.param(each, marks=pytest.mark.nightly) for each in ("", "{", "[1, 2]"))]
)
def test_a_torn_state_file_hides_no_training(box: Box, torn: str) -> None:
    box.start(steps=STEPS, step_s=STEP_S)
    box.kill_supervisor()
    (box.folder() / "state.json").write_text(torn)
    assert box.job()["state"] == "running"
    assert box.start(steps=STEPS, step_s=STEP_S)["state"] == "running"
    assert box.wait()["outcome"] == "finished"
    assert box.starts() == 1


@pytest.mark.parametrize("change", [{"boot_id": "another boot"}, {"start_ticks": 1}])
def test_a_pid_of_another_boot_or_another_start_is_not_the_job(box: Box, change: dict[str, object]) -> None:
    box.start(steps=ENDLESS)
    state = box.state()
    box.kill_everything()
    stranger = processes.identity(os.getpid())
    assert stranger is not None
    fake = {**state, "supervisor": {**stranger, **change}, "program": {**stranger, **change}}
    (box.folder() / "state.json").write_text(json.dumps(fake))
    assert box.job()["state"] == "lost"


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    known = processes.identity(child.pid)
    until(lambda: (processes.stat_fields(child.pid) or "Z")[0] == "Z")
    os.kill(child.pid, 0)
    assert known is not None and not processes.is_alive(known)
    assert processes.identity(child.pid) is None
    child.wait()


def test_a_program_job_gives_its_last_line_as_result(box: Box) -> None:
    text = "import json\nfor done in range(3): print(json.dumps({'done': done}), flush=True)"
    request = box.program_request(text)
    assert box.call("start", **request)["state"] == "started"
    ended = box.wait(job="prepare")
    assert (ended["outcome"], ended["result"]) == ("finished", {"done": 2})
    assert json.loads((box.folder(job="prepare") / "result.json").read_text()) == {"done": 2}
    assert box.call("start", **request)["state"] == "ended"
    assert box.starts(job="prepare") == 1
    assert box.call("start", **box.program_request(text, digest="other input"))["state"] == "started"


def test_a_program_job_that_failed_starts_again(box: Box, tmp_path: Path) -> None:
    mark = tmp_path / "second"
    text = f"import os, sys\nif not os.path.exists({str(mark)!r}): sys.exit('not yet')\nprint('{{}}')"
    box.call("start", **box.program_request(text))
    ended = box.wait(job="prepare")
    assert (ended["outcome"], ended["code"], ended["result"]) == ("failed", 1, None)
    assert ended["last_lines"] == ["not yet"]
    mark.touch()
    assert box.call("start", **box.program_request(text))["state"] == "started"
    assert box.wait(job="prepare")["outcome"] == "finished"
    assert box.starts(job="prepare") == 2


@pytest.mark.parametrize(
    "change",
    [{"job": "dance"}, {"run": "../../etc"}, {"run": "a b"}, {"run": "x" * 41}, {"spec": []}, {"digest": None}],
)
def test_a_start_that_cannot_be_meant_is_refused(box: Box, change: dict[str, object]) -> None:
    assert box.call("start", **{**box.train_request("r-1"), **change})["error"]["code"] == "bad-request"
    assert not (box.root / "jobs").exists() or not list((box.root / "jobs").rglob("starts.jsonl"))


def test_a_python_that_is_not_there_is_refused_and_may_be_corrected(box: Box) -> None:
    refused = box.start(spec_python="/no/such/python")["error"]
    assert refused["code"] == "bad-request" and "/no/such/python" in refused["message"]
    assert box.start()["state"] == "started"
    assert box.wait()["outcome"] == "finished"

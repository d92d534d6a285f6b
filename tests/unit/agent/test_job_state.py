"""What a job's state is while other processes write it: a look between two writes must not see what never was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.agent.contract.names import State
from orchestrator.agent.job import jobs
from orchestrator.agent.job.jobs import Job
from orchestrator.agent.queue import entries
from orchestrator.agent.system import files, processes
from orchestrator.agent.system.paths import Places

NEVER: list[int] = []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    places = Places(str(tmp_path / "agent" / "agent.pyz"))
    return Job.of_request(places, {"job": "train", "run": "r-1", "digest": "d", "spec": {}})


def during_the_look(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """What another process does after the files were read and before the processes are looked for."""
    left = [happens]

    def none_lives(folder: str) -> list[int]:
        if left:
            left.pop()()
        return NEVER

    monkeypatch.setattr(processes, "of_job", none_lives)


def test_a_queued_training_that_begins_while_one_looks_is_never_missing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries.add(job.places, job)

    def begins() -> None:
        files.write_json(job.file("state.json"), {"program": processes.identity(os.getpid())})
        entries.forget(job.places, "r-1")

    during_the_look(monkeypatch, begins)
    assert jobs.read_state(job)["state"] == State.RUNNING


def test_a_training_that_ends_while_one_looks_is_never_lost(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    files.make_folder(job.folder)
    Path(job.file("starts.jsonl")).write_text("{}\n")
    during_the_look(monkeypatch, lambda: files.write_json(job.file("exit.json"), {"outcome": "finished"}))
    assert jobs.read_state(job)["state"] == State.ENDED


def test_what_nobody_started_is_none_and_what_left_no_record_is_lost(job: Job) -> None:
    files.make_folder(job.folder)
    assert jobs.read_state(job)["state"] == State.NONE
    Path(job.file("starts.jsonl")).write_text("{}\n")
    assert jobs.read_state(job)["state"] == State.LOST


@pytest.mark.parametrize(("training", "state"), [(State.RUNNING, State.STARTED), (State.ENDED, State.ENDED)])
def test_an_offload_that_has_finished_starts_again_while_a_further_attempt_trains(
    job: Job, monkeypatch: pytest.MonkeyPatch, training: str, state: str
) -> None:
    offload = Job(job.places, job.run, "offload", "s3://b/r-1", {"store": "s3://b/r-1"})
    exits = {"outcome": "finished", "reason": "", "ended_at": 1.0}
    for each in (job, offload):
        files.make_folder(each.folder)
        jobs.write_spec(each)
        files.write_json(each.file("exit.json"), exits)
    real = jobs._look
    monkeypatch.setattr(jobs, "_look", lambda each: {**real(each), "state": training} if each.is_train else real(each))
    monkeypatch.setattr(jobs, "_supervise", lambda *_: None)
    assert jobs.start(offload, {})["state"] == state
    assert os.path.exists(offload.file("exit.json")) == (state == State.ENDED)

"""The door for what a machine answers: bounds, types and names, and the exit records of the agent of version 0.1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import pytest

from orchestrator.agent.contract.answers import ExitRecord, GuardAnswer, Lease, MachineStatus
from orchestrator.agent.contract.names import Code, JobName
from orchestrator.core.errors import AgentError, RemoteError, StorageError, VerificationFailed
from orchestrator.core.ports import Result, Shell
from orchestrator.remote.agent_client import pull_job
from orchestrator.remote.agent_client.answers import Data, Ended, follow_line, followed_files, job_state
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.agent_client.decoding import decoded, json_object
from orchestrator.remote.agent_client.job_failure import failure

FILES = followed_files(JobName.TRAIN)
GUARD = {"kind": "none", "armed": False, "ends_at": None}
RUN = {
    "jobs": {}, "lease": None, "guard": GUARD, "step": None, "metrics": None, "checkpoints": [], "latest": None,
    "best": None, "safe": [], "store": None, "keep": None, "holding": None, "sizes": {}, "notice": None, "warnings": [],
}  # fmt: skip
OLD_EXIT: dict[str, Any] = {
    "code": 1, "signal": None, "outcome": "failed", "reason": "ended with code 1", "started_at": 1.0, "ended_at": 2.0,
    "duration_s": 1.0, "last_lines": [], "error": None, "trainer": None, "result": None,
}  # fmt: skip
"""As the agent of version 0.1 wrote it."""


def data_line(**changes: object) -> dict[str, object]:
    return {"kind": "data", "file": "train.log", "offset": 0, "data": "aGk=", **changes}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "left_s is missing"),
        ({"left_s": "1e9", "deadline_left_s": None}, "left_s is '1e9', not a number"),
        ({"left_s": True, "deadline_left_s": None}, "left_s is True, not a number"),
        ({"left_s": float("nan"), "deadline_left_s": None}, "left_s is nan, not a number"),
        ({"left_s": float("inf"), "deadline_left_s": None}, "left_s is inf, not a number"),
        ({"left_s": 1, "deadline_left_s": [2]}, r"deadline_left_s is \[2\], not a number"),
        ([1], r"the answer is \[1\], not an object"),
    ],
)
def test_a_wrong_type_is_said_with_its_place(value: object, words: str) -> None:
    with pytest.raises(AgentError, match=rf"^agent renew: {words}$"):
        decoded(Lease, value, "renew")


def test_the_place_of_a_wrong_type_leads_through_lists_and_objects() -> None:
    status = {"runs": {"r-1": {**RUN, "checkpoints": [1, "2"]}}, "guard": GUARD, "time_s": 1}
    with pytest.raises(RemoteError, match=r"runs.r-1.checkpoints\[1\] is '2', not a whole number"):
        decoded(MachineStatus, status, "status")


def test_what_fits_passes_and_keys_that_nobody_knows_too() -> None:
    answer = {"guard": {**GUARD, "left_s": 3, "moon": "full"}}
    assert decoded(GuardAnswer, answer, "arm") == answer


def test_a_deep_answer_is_not_an_answer() -> None:
    assert json_object(b"[" * 100_000) is None and json_object(b"Welcome!") is None


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../.ssh/authorized_keys", "..", "", "config.json", "log", "a/train.log"]
)
def test_a_machine_cannot_name_a_file_that_was_not_asked_for(name: str) -> None:
    with pytest.raises(AgentError, match=r"is not one of metrics.jsonl, events.jsonl, train.log; nothing was"):
        follow_line(data_line(file=name), FILES)


@pytest.mark.parametrize(
    "changes", [{"offset": -1}, {"offset": "0"}, {"offset": 1.5}, {"data": None}, {"data": "a"}, {"data": "\u00fc"}]
)
def test_a_damaged_data_line_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(AgentError):
        follow_line(data_line(**changes), FILES)


def test_lines_of_follow_become_values() -> None:
    assert follow_line(data_line(), FILES) == Data("train.log", 0, b"hi")
    assert follow_line({"kind": "ended", "exit": OLD_EXIT}, FILES) == Ended(OLD_EXIT)  # type: ignore[arg-type]
    for bad in ({"kind": "ended", "exit": None}, {"kind": "heartbeat", "time_s": 1}, {"kind": "?"}, {}):
        with pytest.raises(AgentError):
            follow_line(bad, FILES)


def old_exit(*lines: str) -> ExitRecord:
    answer = {
        "job": "pull",
        "run": "r-1",
        "state": "ended",
        "digest": "d",
        "exit": {**OLD_EXIT, "last_lines": [*lines]},
    }
    ended = job_state(answer).exit
    assert ended is not None
    return ended


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("source-refused: pull of train.bin: example.com answers 403 Forbidden", Code.SOURCE_DENIED),
        ("source-refused: pull of train.bin: example.com answers 404 Not Found", Code.SOURCE_CHANGED),
        ("source-refused: pull of a: the file there has 7 bytes, announced were 9", Code.SOURCE_CHANGED),
        ("source-refused: pull of a: the server ignores byte ranges", Code.SOURCE_WITHOUT_RANGES),
        ("source-refused: pull of a: example.com answers 410 Gone", Code.SOURCE_REFUSED),
        ("disk-full: 2.00 GB are to come and /root has 1.00 GB free", Code.DISK_FULL),
        ("wrong-bytes: /root/x: sha256 is ab, promised was cd", Code.WRONG_BYTES),
        ("Traceback: something", ""),
    ],
)
def test_the_exit_record_of_an_old_agent_is_read(line: str, code: str) -> None:
    assert failure(old_exit("downloading", line, "hint: do this"))["code"] == code


def test_the_hint_of_an_old_agent_is_kept_and_a_silent_job_has_its_reason() -> None:
    found = failure(old_exit("disk-full: no room", "hint: free some space"))
    assert (found["message"], found["hint"]) == ("no room", "free some space")
    assert failure(old_exit())["message"] == "ended with code 1"


def test_a_stated_refusal_counts_and_not_the_log() -> None:
    stated = {"code": "source-denied", "message": "no", "hint": ""}
    ended: Any = {**old_exit("disk-full: as the log says"), "refusal": stated}
    assert failure(ended) == stated
    assert isinstance(pull_job._error(failure(ended)), StorageError)
    assert "clock" in pull_job._error(failure(ended)).hint
    assert isinstance(pull_job._error({"code": "wrong-bytes", "message": "no", "hint": ""}), VerificationFailed)


class Killed:
    """A shell on which the first calls die by a signal, before a word."""

    def __init__(self, times: int, code: int) -> None:
        self.times, self.code, self.asked = times, code, 0

    def openssh(self) -> None:
        return None

    def run(self, argv: Sequence[str], *, stdin: bytes, deadline_s: float) -> Result:
        self.asked += 1
        died = self.asked <= self.times
        answer = b"" if died else json.dumps({"checkpoints": [], "files": {}}).encode()
        return Result(tuple(argv), self.code if died else 0, answer, b"")


@pytest.mark.parametrize("code", [-1, 137])
def test_a_call_that_is_killed_is_made_once_more(code: int) -> None:
    """It is no verdict on a machine: with one, a run that has not begun ends, and its machine is given back."""
    shell = Killed(1, code)
    assert Agent(cast("Shell", shell), "~/.gptctl", "python3").manifest("r-1") == [] and shell.asked == 2
    always = Killed(9, code)
    with pytest.raises(AgentError, match="no answer"):
        Agent(cast("Shell", always), "~/.gptctl", "python3").manifest("r-1")
    assert always.asked == 2

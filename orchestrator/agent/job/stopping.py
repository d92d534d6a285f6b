"""Ending a program in steps: ask, wait, insist, kill.

For a training the *ranks* are asked, not torchrun: torchrun would turn SIGTERM into exit code 1 and kill after 30 s,
while a rank writes its checkpoint and exit.json first. A stop request is a file, so a supervisor that was killed and
replaced still knows of it.

Example::

    request_stop(job, "stopped", "asked by the user", grace_s=300)
    stop(job, program, read_request(job), wake)
"""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, Optional, TypedDict, cast

from trainer import run_files

from ..contract.names import FileName
from ..system import files, processes
from .jobs import Job
from .program import Program

AFTER_EXIT_S = 20.0
"""How long torchrun may take to end after the trainer wrote its exit.json."""
INSIST_S = 10.0


class StopRequest(TypedDict):
    """stop.json: the job is to end by `ends_at` (this machine's UTC clock), with this outcome."""

    outcome: str
    reason: str
    ends_at: float


def request_stop(job: Job, outcome: str, reason: str, grace_s: float) -> StopRequest:
    """Writes the request down. An earlier one keeps its outcome and reason; the shorter grace counts."""
    ends_at = time.time() + grace_s
    request = read_request(job) or StopRequest(outcome=outcome, reason=reason, ends_at=ends_at)
    request["ends_at"] = min(request["ends_at"], ends_at)
    files.write_json(job.file(FileName.STOP), request)
    return request


def read_request(job: Job) -> StopRequest | None:
    """What was asked of the job; None: nothing."""
    return cast("Optional[StopRequest]", files.read_json(job.file(FileName.STOP)))


def stop(job: Job, program: Program, wake: Callable[[float], None]) -> None:
    """Returns when the program is gone. `wake(seconds)` waits, at most that long."""
    _ask(job, program, wake)
    if program.poll() is None:
        processes.send([program.pid], signal.SIGTERM)
        _wait(program, INSIST_S, wake)
    if program.poll() is None:
        processes.kill_all(job.folder)
        _wait(program, INSIST_S, wake)


def _ask(job: Job, program: Program, wake: Callable[[float], None]) -> None:
    """SIGTERM once to the working processes, then patience: up to the grace, less once the trainer is done."""
    exit_file = os.path.join(job.run_folder, run_files.EXIT)
    processes.send(processes.ranks(job.folder) if job.is_train else processes.of_job(job.folder), signal.SIGTERM)
    if job.is_train:
        # After the signal: a rank that sees the file first would be hit while it ends, and seem to have failed. Ranks
        # that are only just starting find the file.
        files.write_bytes(os.path.join(job.run_folder, run_files.STOP), b"")
    exit_seen_at: float | None = None
    while program.poll() is None:
        if job.is_train and exit_seen_at is None and os.path.exists(exit_file):
            exit_seen_at = time.monotonic()
        if exit_seen_at is not None and time.monotonic() - exit_seen_at > AFTER_EXIT_S:
            return
        # Read again each time: a release may have shortened the grace meanwhile.
        request = read_request(job)
        if request is None or time.time() > request["ends_at"]:
            return
        wake(0.2)


def _wait(program: Program, deadline_s: float, wake: Callable[[float], None]) -> None:
    ends = time.monotonic() + deadline_s
    while program.poll() is None and time.monotonic() < ends:
        wake(0.2)

"""The record of how a job ended: exit.json, written once. Its outcome is the trainer's word, then the request's, then
the exit code's: a finished training stays finished even if torchrun stumbles afterwards.

It must not end anything; its caller knows that everything has ended.

Example::

    record = write_exit(job, code=0, started_at=1.0)
    record["outcome"]            # 'finished', 'stopped', 'failed', 'limit' or 'preempted'
"""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Mapping, Optional, Sequence, cast

from trainer import run_files

from ..contract.answers import ExitRecord, Failure
from ..contract.names import FileName
from ..system import files
from ..system.refusal import Refusal
from . import gpu_faults
from .jobs import Job
from .stopping import StopRequest, read_request

LAST_LINES = 40
KILLED = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-\d+) ")
"""A rank in torchrun's summary that a signal ended."""
TrainerExit = Optional[Mapping[str, object]]
"""The exit.json of the run folder: the trainer's own word."""


def write_exit(
    job: Job, code: int | None, started_at: float | None, cause: str = "", lost: Sequence[int] = ()
) -> ExitRecord:
    """Writes and returns exit.json. `code` None: nobody could learn it (the machine or the supervisor went away).
    cause: what another node says of a failure; what was seen here follows from it. lost: nodes that went."""
    trainer = files.read_json(os.path.join(job.run_folder, run_files.EXIT)) if job.is_train else None
    request = read_request(job)
    outcome = _outcome(job, code, trainer, request)
    ended_at = time.time()
    seen = _reason(job, code, trainer, request if outcome != run_files.OUTCOME_FINISHED else None)
    record: ExitRecord = {
        "code": code,
        "signal": _signal_name(code),
        "outcome": outcome,
        "reason": (_with_cause(cause, seen) if cause and outcome == run_files.OUTCOME_FAILED else seen)
        + (gpu_faults.since(started_at) if outcome == run_files.OUTCOME_FAILED and job.spec.get("gpus") else ""),
        "started_at": started_at,
        "ended_at": ended_at,
        "duration_s": None if started_at is None else round(ended_at - started_at, 3),
        "last_lines": last_lines(job),
        "error": _error(job),
        "refusal": _refusal(job) if outcome == run_files.OUTCOME_FAILED else None,
        "trainer": trainer,
        "result": _result(job) if outcome == run_files.OUTCOME_FINISHED else None,
    }
    if deaths := job.deaths():
        record["deaths"] = deaths
    if lost:
        record["lost"] = list(lost)
    if record["result"] is not None:
        files.write_json(job.file(FileName.RESULT), record["result"])
    files.write_json(job.file(FileName.EXIT), record)
    return record


def write_unstarted(job: Job, outcome: str, reason: str) -> None:
    """The exit of a training that never started: it was dropped, or nothing was left for it."""
    record: ExitRecord = {
        "code": None, "signal": None, "outcome": outcome, "reason": reason, "started_at": None,
        "ended_at": time.time(), "duration_s": None, "last_lines": [], "error": None, "refusal": None,
        "trainer": None, "result": None,
    }  # fmt: skip
    files.write_json(job.file(FileName.EXIT), record)


def death_reason(job: Job, code: int | None) -> str:
    """Why a training died, in the words of its exit record."""
    trainer = files.read_json(os.path.join(job.run_folder, run_files.EXIT))
    return _reason(job, code, trainer, read_request(job))


def _outcome(job: Job, code: int | None, trainer: TrainerExit, request: StopRequest | None) -> str:
    said = (trainer or {}).get("outcome")
    if said == run_files.OUTCOME_FINISHED or (code == 0 and not job.is_train):
        return run_files.OUTCOME_FINISHED
    if request:
        return str(request["outcome"])
    if not said and code == 0 and is_other_node(job):
        return run_files.OUTCOME_FINISHED
    return str(said) if said else run_files.OUTCOME_FAILED


def _reason(job: Job, code: int | None, trainer: TrainerExit, request: StopRequest | None) -> str:
    said = str((trainer or {}).get("reason") or "")
    if request:
        # Without its own word the trainer was killed before it could save: worth saying.
        unsaved = "" if said or trainer or not job.is_train else "; it was ended before it wrote its exit.json"
        return "%s%s" % (request["reason"], unsaved)
    if said or trainer:
        return said + killed_ranks("\n".join(last_lines(job)))
    if code is None:
        return "its processes are gone and left no exit record: killed, or the machine was restarted"
    if code == 0 and is_other_node(job):
        return "its ranks left in good order; the head has the verdict"
    if code == 0:
        return "ended with code 0 but without an exit.json" if job.is_train else ""
    name = _signal_name(code)
    killed = killed_ranks("\n".join(last_lines(job))) if job.is_train else ""
    return "killed by %s" % name if name else "ended with code %d%s" % (code, killed)


def _with_cause(cause: str, seen: str) -> str:
    return seen if cause in seen else cause if seen in cause else "%s; seen here: %s" % (cause, seen)


def is_other_node(job: Job) -> bool:
    """Whether this is one of several nodes, and not the head: rank 0 writes the verdict there."""
    cluster = job.spec.get("cluster")
    return cluster is not None and cluster["node"] > 0


def killed_ranks(log: str) -> str:
    """`; rank 1 was killed by SIGKILL` for each rank that torchrun's summary in the log says was killed: the others
    only notice that a peer is gone. SIGTERM is torchrun's own, to those that are left."""
    killed = [(rank, _signal_name(int(code))) for rank, code in KILLED.findall(log)]
    return "".join("; rank %s was killed by %s" % each for each in sorted(set(killed)) if each[1] != "SIGTERM")


def _signal_name(code: int | None) -> str | None:
    if code is None or code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return str(-code)


def note_refusal(job: Job, refusal: Refusal) -> None:
    """Why it could not start again, into its log."""
    with open(job.log, "a") as log:
        log.write("gptctl: not started again: %s\n" % refusal.message)


def last_lines(job: Job) -> list[str]:
    """The last lines of the log, for the message."""
    return files.tail(job.log).decode(errors="replace").splitlines()[-LAST_LINES:]


def _error(job: Job) -> object:
    """torchrun's error file: what the first rank that failed said."""
    stored = files.read_json(job.file(FileName.ERROR))
    return stored.get("message", stored) if stored else None


def _refusal(job: Job) -> Failure | None:
    """Why one of the agent's own jobs failed."""
    return cast("Optional[Failure]", files.read_json(job.file(FileName.REFUSAL)))


def _result(job: Job) -> dict[str, object] | None:
    return None if job.is_train else next(files.last_json_lines(job.file(FileName.PROGRESS)), {})

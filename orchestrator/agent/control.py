"""What people ask of running jobs: stop, renew, release. Asks the supervisor, waits, and says how it ended.

The supervisor does the stopping; when it was killed, a new one is started first, so there is one way only.

Example::

    stop(places, {"run": run, "job": "train", "grace_s": 300}, say)
"""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, Mapping

from trainer import run_files

from .contract.answers import GuardAnswer, LeaseAnswer, QueueAnswer, StopAnswer
from .contract.names import (
    FINISH_WITHIN_S,
    GRACE_S,
    HEARTBEAT_S,
    LEASE_S,
    Code,
    JobName,
    LineKind,
    Outcome,
    State,
)
from .guard import attendance, order
from .job import fields, jobs, stopping
from .job.jobs import Job
from .queue import entries
from .system import files, lease, processes
from .system.paths import Places, checked_run
from .system.refusal import Refusal

AFTER_GRACE_S = 45.0
RELEASE_GRACE_S = 30.0
Say = Callable[[Mapping[str, object]], None]


def stop(places: Places, request: fields.Request, say: Say) -> None:
    """Ends the newest job of that name and says its exit; `none` when there is none."""
    grace_s = fields.seconds(request, "grace_s", GRACE_S)
    try:
        job = fields.find_job(places, request)
    except Refusal as refusal:
        if refusal.code not in (Code.NO_SUCH_RUN, Code.NO_SUCH_JOB):
            raise
        say(StopAnswer(state=State.NONE, exit=None))
        return
    say(_stopped(job, grace_s, say))


def release(places: Places, request: fields.Request, say: Say) -> None:
    """Ends every job of the run and forgets its lease; locks and secrets go with the processes. Twice is fine."""
    run = checked_run(request.get("run"))
    ended = [
        job.name for job in jobs.of_run(places, run) if _stopped(job, RELEASE_GRACE_S, say)["state"] == State.ENDED
    ]
    _forget_secrets(places, run)
    if os.path.isdir(places.jobs_of(run)):
        lease.forget(places.jobs_of(run))
    say({"released": True, "ended": ended})


def _forget_secrets(places: Places, run: str) -> None:
    """What the store's jobs had in memory, and the line that lets a home box in."""
    from .checkpoints import authorized_keys

    for job in jobs.of_run(places, run):
        jobs.forget_secrets(job)
    authorized_keys.remove(run)


def renew(places: Places, request: fields.Request) -> LeaseAnswer:
    """Durations from now; never past the deadline. Without a run the machine's own lease, which only a guard has."""
    if request.get("run") is None:
        order.renew(places, fields.seconds(request, "duration_s", LEASE_S))
        attendance.record_call(places)
        return {"lease": lease.read(places.guard)}
    run = checked_run(request.get("run"))
    folder = places.jobs_of(run)
    if not os.path.isdir(folder):
        raise Refusal(Code.NO_SUCH_RUN, "no run %s on this machine" % run)
    deadline = fields.seconds(request, "deadline_s", 0.0) if request.get("deadline_s") is not None else None
    return {"lease": lease.renew(folder, fields.seconds(request, "duration_s", LEASE_S), deadline)}


def finish(places: Places, request: fields.Request) -> GuardAnswer:
    """Hands the machine's end over to the asker; the guard does it if it is still there within_s from now."""
    return {"guard": order.finish(places, max(1.0, fields.seconds(request, "within_s", FINISH_WITHIN_S)))}


def order_queue(places: Places, request: fields.Request) -> QueueAnswer:
    """What waits here; first moves or drops what `move` (with `to`, from 1) or `drop` names. Raises Refusal
    `no-such-run` for a run that does not wait."""
    if request.get("drop") is not None:
        run = checked_run(request.get("drop"))
        if not entries.drop(places, run, Outcome.STOPPED, "dropped from the queue"):
            raise _does_not_wait(places, run)
    if request.get("move") is not None:
        entries.move(places, checked_run(request.get("move")), int(fields.seconds(request, "to", 1.0)))
    entries.revive(places)
    return entries.answer(places)


def _does_not_wait(places: Places, run: str) -> Refusal:
    job = jobs.load(places, run, JobName.TRAIN)
    state = jobs.read_state(job)["state"] if job else State.NONE
    hint = "gptctl stop %s ends a training that runs" % run if state == State.RUNNING else ""
    return Refusal(Code.NO_SUCH_RUN, "run %s does not wait in the queue of this machine: %s" % (run, state), hint)


def _stopped(job: Job, grace_s: float, say: Say) -> StopAnswer:
    if job.is_train:
        entries.drop(job.places, job.run, Outcome.STOPPED, "asked to stop")
    found = jobs.read_state(job)
    if found["state"] == State.NONE or (found["state"] == State.LOST and not job.is_train):
        return {"state": State.NONE, "exit": None}
    if found["state"] != State.ENDED:
        # Before a new supervisor comes: it must find the request when it looks for the first time.
        stopping.request_stop(job, Outcome.STOPPED, "asked to stop", grace_s)
        jobs.revive(job)
        if job.is_engines:  # its ranks are elsewhere, and look into its folder
            files.write_bytes(os.path.join(job.run_folder, run_files.STOP), b"")
        _ring(job)
        _wait(job, grace_s + AFTER_GRACE_S, say)
    return {"state": State.ENDED, "exit": job.exit_record()}


def _ring(job: Job) -> None:
    """Wakes the supervisor, so that it looks for requests now."""
    supervisor = job.state_file().get("supervisor")
    if supervisor and processes.is_alive(supervisor):
        processes.send([supervisor["pid"]], signal.SIGTERM)


def _wait(job: Job, deadline_s: float, say: Say) -> None:
    """Until exit.json is there, with a heartbeat every 2 s so that the asker knows that the link lives."""
    ends = time.monotonic() + deadline_s
    while not jobs.wait_for_end(job, HEARTBEAT_S):
        say({"kind": LineKind.HEARTBEAT, "time_s": time.time()})
        jobs.revive(job)
        if time.monotonic() > ends:
            left = processes.of_job(job.folder)
            raise Refusal(Code.NOT_ENDED, "%s of %s does not end; processes left: %s" % (job.name, job.run, left))

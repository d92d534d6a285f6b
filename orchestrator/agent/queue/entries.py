"""Which trainings wait here, and in which order: one file per run in ROOT/queue, beside a train job that has a spec and
was never started.

An entry is only a place in the order; the job's own folder is the truth, so a training is enqueued at most once and
started at most once, whichever process is killed on the way. It must not start a training; runner.py does.

Example::

    add(places, job)                     # {'state': 'queued', ...}; again: the same
    [each["run"] for each in read(places)]
    drop(places, run, Outcome.STOPPED, "asked to stop")
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from typing import Iterator, Optional, TypedDict, cast

from ..contract.answers import QueueAnswer, QueueEntry, StartAnswer
from ..contract.names import Code, FileName, JobName, Outcome, State
from ..contract.requests import QueueTerms
from ..job import exit_record, jobs, starts
from ..job.jobs import Job
from ..system import detach, files, processes
from ..system.paths import RUN_PATTERN, Places, checked_run
from ..system.refusal import Refusal

MOST_ENTRIES = 1000


class Entry(TypedDict):
    """ROOT/queue/RUN.json: its place among the others, and when it came (this machine's UTC clock)."""

    run: str
    position: float
    added_at: float


def read(places: Places) -> list[Entry]:
    """Every run that waits, the next one first. What has started meanwhile waits no longer."""
    found = []
    for name in files.listing(places.queue):
        run, ending = os.path.splitext(name)
        if ending == ".json" and RUN_PATTERN.match(run):
            stored = files.read_json(places.queued(run))
            if stored is not None and isinstance(stored.get("position"), (int, float)):
                found.append(cast("Entry", dict(stored, run=run)))
    return sorted(found, key=lambda entry: (entry["position"], entry.get("added_at", 0.0), entry["run"]))


@contextlib.contextmanager
def editing(places: Places) -> Iterator[None]:
    """Alone with the order: of two laptops that add at once the second sees what the first did."""
    files.make_folder(places.queue)
    with open(os.path.join(places.queue, "edit.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add(places: Places, job: Job) -> StartAnswer:
    """Puts a training at the end of the queue. One that waits, runs or has ended stays as it is. Raises Refusal for
    another digest under the same run, and for a queue that is full."""
    if not job.is_train:
        raise Refusal(Code.BAD_REQUEST, "only a training waits in the queue, not %s" % job.name)
    with editing(places):
        known = read(places)
        if len(known) >= MOST_ENTRIES:
            raise Refusal(Code.BAD_REQUEST, "%d trainings wait here; no more are taken" % len(known))
        files.make_folder(job.folder)
        lock = starts.locked(job)
        try:
            found = jobs.read_state(job)
            if found["state"] == State.NONE:
                files.make_folder(job.run_folder)  # one that never starts is asked for its checkpoints too
                jobs.write_spec(job)
                last = known[-1]["position"] if known else 0.0
                entry: Entry = {"run": job.run, "position": last + 1.0, "added_at": time.time()}
                files.write_json(places.queued(job.run), entry)
            else:
                jobs.check_digest(job)
            return jobs.answer(job, State.QUEUED if found["state"] == State.NONE else found["state"])
        finally:
            os.close(lock)


def drop(places: Places, run: str, outcome: str, reason: str) -> bool:
    """Takes a run out of the queue: its training ends unstarted, with this outcome. False: it does not wait (any
    more), and nothing was changed."""
    job = jobs.load(places, checked_run(run), JobName.TRAIN)
    if job is None or not os.path.exists(places.queued(run)):
        return False
    lock = starts.locked(job)
    try:
        if jobs.read_state(job)["state"] != State.QUEUED:
            return False
        exit_record.write_unstarted(job, outcome, reason)
        forget(places, run)
        return True
    finally:
        os.close(lock)


def forget(places: Places, run: str) -> None:
    """Its place in the order is free: it has started, or ended."""
    files.remove(places.queued(run))


def move(places: Places, run: str, to: int) -> None:
    """Puts a waiting run at this place, counted from 1. Raises Refusal for one that does not wait."""
    with editing(places):
        order = [entry for entry in read(places) if entry["run"] != run]
        mine = next((entry for entry in read(places) if entry["run"] == run), None)
        if mine is None:
            raise Refusal(Code.NO_SUCH_RUN, "run %s does not wait in the queue of this machine" % run)
        order.insert(max(0, to - 1), mine)
        for number, entry in enumerate(order, 1):
            if entry["position"] != number:
                files.write_json(places.queued(entry["run"]), dict(entry, position=float(number)))


def terms_of(job: Job) -> QueueTerms:
    """What its caller asked of the queue; empty for a training that never waited."""
    return job.spec.get("queue") or {}


def ahead(places: Places, run: str) -> int | None:
    """How many waiting runs come first; None where it does not wait."""
    order = [entry["run"] for entry in read(places)]
    return order.index(run) if run in order else None


def is_alive(places: Places) -> bool:
    """Whether the process that starts them runs."""
    return processes.is_alive(_state(places))


def note_runner(places: Places, identity: processes.Identity | None) -> None:
    """Who starts them; None: nobody does, since nothing waits."""
    path = os.path.join(places.queue, FileName.STATE + ".runner")
    if identity is None:
        files.remove(path)
    else:
        files.write_json(path, identity)


def _state(places: Places) -> processes.Identity | None:
    return cast("Optional[processes.Identity]", files.read_json(os.path.join(places.queue, FileName.STATE + ".runner")))


def answer(places: Places) -> QueueAnswer:
    """What waits, for callers."""
    return {"queue": [_described(places, entry) for entry in read(places)], "alive": is_alive(places)}


def _described(places: Places, entry: Entry) -> QueueEntry:
    job = jobs.load(places, entry["run"], JobName.TRAIN)
    terms = terms_of(job) if job else QueueTerms()
    return {
        "run": entry["run"],
        "added_at": entry["added_at"],
        "arm": terms.get("arm"),
        "group": terms.get("group"),
        "needs_s": terms.get("needs_s"),
    }


def skip_all(places: Places, reason: str, group: str | None = None) -> None:
    """Ends everything that waits, or what waits of one group."""
    for entry in read(places):
        job = jobs.load(places, entry["run"], JobName.TRAIN)
        if job is not None and (group is None or terms_of(job).get("group") == group):
            drop(places, entry["run"], Outcome.NEVER_STARTED, reason)


def revive(places: Places) -> None:
    """Starts the queue's process if something waits and it does not run. What cannot be done now is done later."""
    if is_alive(places) or not read(places):
        return
    detach.spawn([sys.executable, "-I", "-S", places.code, "queue"], os.path.join(places.queue, "log"), [])

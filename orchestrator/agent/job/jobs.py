"""A job: its folder, what is known about it, and how it is started exactly once.

A job's truth is its processes and its exit.json; state.json only says where to look. It must not watch a job; that is
the supervisor's work, and any verb that meets a living job without a supervisor gives it a new one.

Example::

    job = Job.of_request(places, {"run": run, "job": "train", "digest": digest, "spec": spec})
    start(job, secrets)          # {'job': 'train', 'run': ..., 'state': 'started', 'digest': ..., 'exit': None}
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Mapping, Optional, TypedDict, cast

from trainer import run_files

from ..contract.answers import Death, ExitRecord, JobState, StartAnswer
from ..contract.names import LEASE_S, Code, FileName, JobName, Outcome, State
from ..contract.requests import JobSpec, StartRequest
from ..system import detach, files, memory_files, processes
from ..system.paths import Places, checked_run
from ..system.refusal import Refusal
from . import starts

READY_DEADLINE_S, AGAIN_AFTER_S = 40.0, 2.0
Secrets = Mapping[str, object]


class StateFile(TypedDict, total=False):
    """state.json: who supervises the job and what its program is; the processes themselves are the truth."""

    supervisor: processes.Identity | None
    program: processes.Identity | None
    started_at: float | None
    job: str
    run: str
    digest: str


class Job:
    """Names and places of one job; reads nothing on its own."""

    def __init__(self, places: Places, run: str, name: str, digest: str, spec: JobSpec) -> None:
        self.places = places
        self.run = run
        self.name = name
        self.digest = digest
        self.spec = spec
        self.folder = places.job(run, name, digest)
        self.run_folder = places.run(run)
        self.lease_folder = places.jobs_of(run)

    @staticmethod
    def of_request(places: Places, request: Mapping[str, object]) -> Job:
        """The job that a `start` request describes. Raises Refusal for one that is incomplete."""
        for key, kind in (("job", str), ("run", str), ("digest", str), ("spec", dict)):
            if not isinstance(request.get(key), kind):
                raise Refusal(Code.BAD_REQUEST, "start needs %r as %s" % (key, kind.__name__))
        known = cast("StartRequest", request)
        return Job(places, known["run"], known["job"], known["digest"], known["spec"])

    @property
    def is_train(self) -> bool:
        return self.name == JobName.TRAIN

    @property
    def is_unattended(self) -> bool:
        """Whether it continues until it has finished: no lease ends it, and a killed one starts again."""
        return self.name in (JobName.OFFLOAD, JobName.KEEP)

    @property
    def is_engines(self) -> bool:
        """Whether an engine such as Slurm runs it, on other machines."""
        return bool(self.spec.get("engine"))

    @property
    def lease_s(self) -> float:
        """For how long a renewal lets the job go on."""
        return float(self.spec.get("lease_s") or LEASE_S)

    def file(self, name: str) -> str:
        """Path of a file in the job's folder."""
        return os.path.join(self.folder, name)

    @property
    def log(self) -> str:
        """Path of what its program prints."""
        return list(self.followed_files().values())[-1]

    def followed_files(self) -> dict[str, str]:
        """What `follow` streams: name -> path; the log is the last."""
        if self.is_train:
            names = (run_files.METRICS, run_files.EVENTS, run_files.LOG)
            return {name: os.path.join(self.run_folder, name) for name in names}
        return {name: self.file(name) for name in (FileName.PROGRESS, FileName.LOG)}

    def exit_record(self) -> ExitRecord | None:
        """How the job ended; None while it has no exit record."""
        return cast("Optional[ExitRecord]", files.read_json(self.file(FileName.EXIT)))

    def state_file(self) -> StateFile:
        """What its last supervisor wrote down; empty where there is none."""
        return cast("StateFile", files.read_json(self.file(FileName.STATE)) or {})

    def deaths(self) -> list[Death]:
        """Every time it died, the oldest first; see restarts.py."""
        return [cast("Death", line) for line in files.json_lines(self.file(FileName.DEATHS))]

    def starts(self) -> int:
        """How many processes were ever started for this job."""
        return files.count_lines(self.file(FileName.STARTS))


def load(places: Places, run: str, folder_name: str) -> Job | None:
    """The job whose folder has this name; None when there is none or its spec cannot be read."""
    stored = files.read_json(os.path.join(places.jobs_of(run), folder_name, FileName.SPEC))
    try:
        return Job.of_request(places, dict(stored, run=run)) if stored else None
    except Refusal:
        return None


def of_run(places: Places, run: str) -> list[Job]:
    """Every job of the run, the oldest first."""
    folder = places.jobs_of(run)
    found = [job for job in (load(places, run, name) for name in files.listing(folder)) if job]
    return sorted(found, key=lambda job: os.stat(job.file(FileName.SPEC)).st_mtime_ns)


def find(places: Places, run: str, name: str, digest: str | None) -> Job:
    """The job of that name; without a digest the newest. Raises Refusal `no-such-run` or `no-such-job`."""
    if not os.path.isdir(places.jobs_of(checked_run(run))):
        raise Refusal(Code.NO_SUCH_RUN, "no run %s on this machine" % run)
    wanted = [job for job in of_run(places, run) if job.name == name and digest in (None, job.digest)]
    if not wanted:
        raise Refusal(Code.NO_SUCH_JOB, "run %s has no job %s here" % (run, name))
    return wanted[-1]


def read_state(job: Job) -> JobState:
    """What is: `state` none, queued, running, lost or ended, the program's pid, whether a supervisor lives, the exit.

    `lost`: it was started, nothing of it lives, and no exit record says why. Seen twice: it may have begun, or ended.
    """
    found = _look(job)
    return _look(job) if found["state"] in (State.NONE, State.LOST) else found


def _look(job: Job) -> JobState:
    stored = job.state_file()
    program = stored.get("program")
    state = JobState(
        state=State.ENDED,
        supervised=False,
        pid=program["pid"] if program else None,
        started_at=stored.get("started_at"),
        exit=job.exit_record(),
    )
    if state["exit"] is not None:
        return state
    if job.is_engines:
        return {**state, "state": State.RUNNING if job.starts() else _unstarted(job), "supervised": True}
    state["supervised"] = processes.is_alive(stored.get("supervisor"))
    # The environment mark finds what a killed starter left without a record; it costs a walk through /proc.
    if state["supervised"] or processes.is_alive(program) or processes.of_job(job.folder):
        state["state"] = State.RUNNING
    else:
        state["state"] = State.LOST if job.starts() else _unstarted(job)
    return state


def was_touched(job: Job) -> bool:
    """Whether a supervisor ever wrote of this job, which it does before it starts anything, or the job has ended."""
    return bool(job.state_file()) or job.starts() > 0 or job.exit_record() is not None


def _unstarted(job: Job) -> str:
    mark = job.file(FileName.ENGINE) if job.is_engines else job.places.queued(job.run)
    return State.QUEUED if job.is_train and os.path.exists(mark) else State.NONE


def start(job: Job, secrets: Secrets) -> StartAnswer:
    """Starts the job or attaches to it. An ended job stays ended if it is a training or did its work; else again."""
    files.make_folder(job.folder)
    lock = starts.locked(job)
    try:
        return answer(job, _startlocked(job, secrets, lock))
    finally:
        os.close(lock)


def _startlocked(job: Job, secrets: Secrets, lock: int) -> str:
    found = _of_this_attempt(job, read_state(job))
    if found["state"] != State.NONE:
        check_digest(job)
    is_over = job.is_train or (_outcome(found) == Outcome.FINISHED and not _has_more(job))
    if found["state"] == State.ENDED and is_over:
        return State.ENDED
    if found["state"] == State.RUNNING:
        if not found["supervised"]:
            _supervise(job, secrets, lock)
        return State.RUNNING
    if found["state"] == State.ENDED:
        files.remove(job.file(FileName.EXIT))
    write_spec(job)
    _supervise(job, secrets, lock)
    if job.is_train and found["state"] == State.LOST:
        return State.ENDED if wait_for_end(job, 10.0) else State.RUNNING
    return State.STARTED


def _of_this_attempt(job: Job, found: JobState) -> JobState:
    """Its state as far as this order goes: what an earlier attempt left is put aside once that has ended."""
    before = load(job.places, job.run, os.path.basename(job.folder)) if job.is_train else None
    if before is None or found["state"] != State.ENDED or starts.number(before) >= starts.number(job):
        return found
    starts.put_aside(before)
    return read_state(job)


def _has_more(job: Job) -> bool:
    """Whether the run's training goes on, in a further attempt, and there is more to store."""
    train = load(job.places, job.run, JobName.TRAIN) if job.name == JobName.OFFLOAD else None
    return train is not None and _look(train)["state"] == State.RUNNING


def write_spec(job: Job) -> None:
    """The job's order on disk: what a supervisor starts from."""
    stored = {"run": job.run, "job": job.name, "digest": job.digest, "spec": job.spec}
    files.write_json(job.file(FileName.SPEC), stored)


def forget_secrets(job: Job) -> None:
    """What a job that stores or keeps has in memory: it has ended."""
    for kind in memory_files.KINDS if job.is_unattended else ():
        memory_files.forget(kind, job.folder)


def revive(job: Job) -> JobState:
    """Reads the state, and gives a job without a supervisor a new one, which watches on or records the end."""
    found = read_state(job)
    if _is_to_go_on(job, found):
        start(job, {})
        return read_state(job)
    if found["state"] in (State.NONE, State.QUEUED, State.ENDED) or found["supervised"]:
        return found
    if found["state"] == State.LOST and not job.is_train:
        return found
    lock = starts.locked(job)
    try:
        found = read_state(job)
        if found["state"] in (State.RUNNING, State.LOST) and not found["supervised"]:
            _supervise(job, {}, lock)
    finally:
        os.close(lock)
    return read_state(job)


def _is_to_go_on(job: Job, found: JobState) -> bool:
    """What works until it has finished or was asked to stop: one that was killed starts again, not at once."""
    if not job.is_unattended or found["state"] not in (State.LOST, State.ENDED):
        return False
    killed = found["state"] == State.LOST or _outcome(found) == Outcome.FAILED
    ended_at = found["exit"]["ended_at"] if found["exit"] else 0.0
    return killed and time.time() - float(ended_at or 0.0) >= AGAIN_AFTER_S


def _outcome(found: JobState) -> str | None:
    return found["exit"]["outcome"] if found["exit"] else None


def revive_quietly(job: Job) -> JobState:
    """As revive, for those who look after others' jobs: what cannot be done now is done at the next look."""
    try:
        return revive(job)
    except (Refusal, OSError):
        return read_state(job)


def wait_for_end(job: Job, deadline_s: float) -> bool:
    """Whether exit.json appears in time."""
    ends = time.monotonic() + deadline_s
    while not os.path.exists(job.file(FileName.EXIT)):
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def check_digest(job: Job) -> None:
    """Raises Refusal where the run already has a training with other input."""
    stored = files.read_json(job.file(FileName.SPEC)) or {}
    if stored.get("digest", job.digest) != job.digest:
        raise Refusal(
            Code.DIGEST_DIFFERS,
            "run %s already has a training with other input (%s, not %s)" % (job.run, stored["digest"], job.digest),
            "a changed recipe is a new run: gptctl run",
        )


def answer(job: Job, state: str) -> StartAnswer:
    """What `start` says of the job in this state."""
    exit_record = job.exit_record() if state == State.ENDED else None
    return {"job": job.name, "run": job.run, "state": state, "digest": job.digest, "exit": exit_record}


def _supervise(job: Job, secrets: Secrets, lock: int) -> None:
    """Starts a supervisor and waits until it has recorded what it does. It inherits the lock: if we are killed now,
    no other starter comes before that record."""
    ready_read, ready_write = os.pipe()
    secret_read, secret_write = os.pipe()
    name = os.path.basename(job.folder)
    argv = [sys.executable, "-I", "-S", job.places.code, "supervise", job.run, name]
    keep = [secret_read, ready_write, lock]
    detach.spawn([*argv, *map(str, keep)], job.file(FileName.SUPERVISOR_LOG), keep)
    os.close(secret_read)
    os.close(ready_write)
    with os.fdopen(secret_write, "wb") as pipe:
        try:
            pipe.write(json.dumps(secrets).encode())
            pipe.flush()
        except BrokenPipeError:
            pass
    _await_ready(job, ready_read)


def _await_ready(job: Job, ready: int) -> None:
    said = b""
    ends = time.monotonic() + READY_DEADLINE_S
    with os.fdopen(ready, "rb", buffering=0) as pipe:
        while b"\n" not in said:
            if not select.select([pipe], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise Refusal(
                    Code.NO_SUPERVISOR, "the supervisor of %s did not answer in %d s" % (job.run, READY_DEADLINE_S)
                )
            chunk = pipe.read(65536)
            if not chunk:
                last = files.tail(job.file(FileName.SUPERVISOR_LOG), 2000).decode(errors="replace").strip()
                raise Refusal(Code.NO_SUPERVISOR, "the supervisor of %s ended at once: %s" % (job.run, last))
            said += chunk
    error = json.loads(said).get("error")
    if error:
        raise Refusal(error["code"], error["message"], error["hint"])

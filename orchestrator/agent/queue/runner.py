"""The queue's process: starts the next training as soon as the last one has ended, and ends once nothing waits.

One per machine, held by a lock; whatever meets a queue without it starts it again: the guard, a supervisor, a verb. It
starts a training by jobs.start, as a caller does, so two of them would start it once. Uploads of ended trainings go on
beside the next one.

Example (started by revive, never by hand)::

    python3 agent-HASH.pyz queue
"""

from __future__ import annotations

import fcntl
import os
import time

from ..checkpoints import manifest, store_index
from ..contract.names import GRACE_S, Code, JobName, Outcome, State
from ..job import jobs, stopping
from ..job.jobs import Job
from ..system import files, lease, processes
from ..system.paths import RUN_PATTERN, Places
from ..system.refusal import Refusal, as_refusal
from . import choice, early_stop, entries

TICK_S = 0.5
TAKEN_PAUSE_S = 2.0
JUDGE_EVERY_S = 10.0
LOCK_WITHIN_S = 5.0
READY_WITHIN_S = 10.0
TAKEN = (Code.GPUS_TAKEN, Code.GPUS_BUSY, Code.CPU_TAKEN, Code.START_BUSY)


def main(places: Places) -> int:
    """Runs until nothing waits. A second one goes."""
    lock = os.open(os.path.join(files.make_folder(places.queue), "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ends = time.monotonic() + LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > ends:
                return 0
            time.sleep(0.05)  # the last one may be leaving
    entries.note_runner(places, processes.identity(os.getpid()))
    queue = Runner(places)
    while True:
        time.sleep(queue.tick())
        with entries.editing(places):  # nobody can add between this look and the end
            if not entries.read(places) and not queue.is_judging():
                entries.note_runner(places, None)
                return 0


class Runner:
    """Looks at the machine, starts what is next, and remembers which runs need no further look."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.over: dict[str, choice.Ended] = {}
        self.judged_at_s = float("-inf")
        self.said = ""

    def tick(self) -> float:
        """One look. Returns how long to wait before the next one."""
        running = self._running()
        self._judge(running)
        self._stop_groups()
        waiting = entries.read(self.places)
        if not waiting:
            return TICK_S
        started = [entry for entry in waiting if self._has_started(entry["run"])]
        for entry in started:
            entries.forget(self.places, entry["run"])
        bad = choice.is_bad_machine(list(self.over.values()), min(entry["added_at"] for entry in waiting))
        if bad:
            self._say("nothing more starts: " + bad)
            entries.skip_all(self.places, "not started: " + bad)
        elif not started and not _blocks(running, self._job(waiting[0]["run"])):
            return self._next(waiting)
        return TICK_S

    def _next(self, waiting: list[entries.Entry]) -> float:
        jobs_by_run = {entry["run"]: self._job(entry["run"]) for entry in waiting}
        known = [self._waiting(job) for job in jobs_by_run.values() if job is not None]
        found = choice.choose(known, self._machine())
        for run, why in found.skipped.items():
            entries.drop(self.places, run, Outcome.LIMIT, "not started: " + why)
        job = jobs_by_run.get(found.start or "")
        if job is None:
            self._say(found.waits_for)
            return TICK_S
        return self._start(job)

    def _start(self, job: Job) -> float:
        self._bound(job)
        try:
            jobs.start(job, {})
        except (Refusal, OSError) as error:
            refusal = as_refusal(error)
            self._say("%s waits: %s" % (job.run, refusal.message))
            if refusal.code not in TAKEN:
                entries.drop(self.places, job.run, Outcome.FAILED, refusal.message)
            return TAKEN_PAUSE_S
        entries.forget(self.places, job.run)
        self._say("started %s" % job.run)
        return TICK_S

    def _bound(self, job: Job) -> None:
        """Its training ends in time for the machine's own deadline, and within what its group may take."""
        terms, guard = entries.terms_of(job), lease.read(self.places.guard)
        bounds = [job.spec.get("deadline_s"), self._group_left_s(job)]
        if guard is not None and guard["deadline_left_s"] is not None:
            bounds.append(guard["deadline_left_s"] - float(terms.get("reserve_s") or 0.0) + GRACE_S)
        known = [max(1.0, float(bound)) for bound in bounds if bound is not None]
        if known:
            job.spec["deadline_s"] = min(known)

    def _job(self, run: str) -> Job | None:
        job = jobs.load(self.places, run, JobName.TRAIN)
        if job is None:
            entries.forget(self.places, run)  # its job's folder is gone: nothing can start it
        return job

    def _has_started(self, run: str) -> bool:
        job = self._job(run)
        # Of one that nothing was ever written of: no walk through /proc, several times a second for each that waits.
        return job is not None and jobs.was_touched(job) and jobs.read_state(job)["state"] != State.QUEUED

    def _running(self) -> list[Job]:
        """The trainings that run; the ends of the others are remembered."""
        found = []
        for run in files.listing(self.places.jobs):
            job = (
                jobs.load(self.places, run, JobName.TRAIN) if RUN_PATTERN.match(run) and run not in self.over else None
            )
            if job is None or not jobs.was_touched(job):
                continue  # what waits, too: to look for its processes in /proc costs 8 ms each
            state = jobs.revive_quietly(job)
            if state["state"] in (State.RUNNING, State.LOST):
                found.append(job)
            elif state["exit"] is not None:
                terms, ended = entries.terms_of(job), state["exit"]
                self.over[run] = choice.Ended(
                    run, terms.get("arm"), ended["outcome"], ended["reason"], ended["duration_s"] or 0.0,
                    terms.get("needs_s"), ended["ended_at"],
                )  # fmt: skip
        return found

    def _waiting(self, job: Job) -> choice.Waiting:
        terms = entries.terms_of(job)
        return choice.Waiting(
            job.run, terms.get("needs_s"), float(terms.get("reserve_s") or 0.0), terms.get("group"),
            self._group_left_s(job), terms.get("disk_bytes"),
        )  # fmt: skip

    def _group_left_s(self, job: Job) -> float | None:
        """Training time that its group may still take: `group_s` less what its ended trainings took."""
        terms = entries.terms_of(job)
        if "group_s" not in terms:
            return None
        taken = [each.duration_s for run, each in self.over.items() if self._group_of(run) == terms.get("group")]
        return float(terms["group_s"]) - sum(taken)

    def _group_of(self, run: str) -> str | None:
        job = jobs.load(self.places, run, JobName.TRAIN)
        return entries.terms_of(job).get("group") if job else None

    def _machine(self) -> choice.Machine:
        guard, disk = lease.read(self.places.guard), os.statvfs(self.places.root)
        return choice.Machine(
            left_s=guard["deadline_left_s"] if guard else None,
            free_bytes=disk.f_bavail * disk.f_frsize,
            is_storing=any(self._is_storing(run) for run in self.over),
            pace=choice.pace(list(self.over.values())),
        )

    def _is_storing(self, run: str) -> bool:
        stored = store_index.state(self.places, run)
        held = manifest.checkpoints(self.places.run(run))
        return stored is not None and not stored["finished"] and any(not each["safe"] for each in held)

    def _stop_groups(self) -> None:
        """A group that stops at its first failure."""
        for entry in entries.read(self.places):
            job = jobs.load(self.places, entry["run"], JobName.TRAIN)
            terms = entries.terms_of(job) if job else {}
            if terms.get("on_failure") != "stop":
                continue
            failed = [
                run for run, each in self.over.items()
                if each.outcome == Outcome.FAILED and self._group_of(run) == terms.get("group")
            ]  # fmt: skip
            if failed:
                entries.drop(
                    self.places, entry["run"], Outcome.NEVER_STARTED,
                    "not started: %s failed, and on_failure is stop" % failed[0],
                )  # fmt: skip

    def _judge(self, running: list[Job]) -> None:
        """Asks an arm to end that is worse than its baseline by more than was agreed to."""
        if time.monotonic() - self.judged_at_s < JUDGE_EVERY_S:
            return
        self.judged_at_s = time.monotonic()
        for job in running:
            rule = entries.terms_of(job).get("stop")
            if not rule or rule["baseline"] == job.run or stopping.read_request(job):
                continue
            why = early_stop.why(job.run_folder, self.places.run(rule["baseline"]), rule)
            if why:
                self._say("%s ends early: %s" % (job.run, why))
                stopping.request_stop(job, Outcome.STOPPED, why, float(job.spec.get("grace_s", GRACE_S)))

    def is_judging(self) -> bool:
        """Whether a training runs that may have to end early."""
        return any(entries.terms_of(job).get("stop") for job in self._running())

    def _say(self, text: str) -> None:
        if text and text != self.said:
            print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, flush=True)
        self.said = text


def _blocks(running: list[Job], job: Job | None) -> bool:
    """Whether a training that runs here holds what this one needs. Other holders show when it starts."""
    if job is None:
        return True
    wanted = set(job.spec.get("gpus") or [])
    for each in running:
        held = set(each.spec.get("gpus") or [])
        if (wanted & held) or (not wanted and not held):
            return True
    return False

"""The supervisor: one detached process per job, from its start to its exit.json.

It starts the job's program, or adopts one that a killed supervisor left, holds the GPU locks, renews the lease while
the job progresses, ends it when the lease, the watchdog or a request says so, and writes down how it ended. Calling it
for a job in any state is right: it looks first.

Example (started by jobs.start, never by hand)::

    python3 agent-HASH.pyz supervise RUN train SECRETS_FD READY_FD LOCK_FD
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from functools import partial
from typing import Callable, Mapping, Sequence

from trainer import run_files

from .checkpoints import manifest, store_index
from .contract.names import GRACE_S, Code, FileName, Outcome
from .guard import order
from .job import exit_record, jobs, nodes, restarts, spot_notice, stopping, together
from .job import program as programs
from .job.jobs import Job
from .job.power import boot_hook, sleep_inhibitor
from .job.program import Program
from .job.watchdog import StepWatch
from .queue import entries
from .system import files, lease, locks, long_logs, processes
from .system.paths import Places
from .system.refusal import Refusal, as_refusal

TICK_S = 0.5
DUMP_S = 2.0
WATCHDOG_GRACE_S = 60.0
SAME_RUN_WAIT_S = 5.0
LOOK_AFTER_EVERY_S = 5.0


def main(places: Places, arguments: Sequence[str]) -> int:
    """Supervises the job to its end. Before that, tells the starter over READY_FD whether it runs."""
    run, folder_name = arguments[0], arguments[1]
    secrets_fd, ready_fd, lock_fd = map(int, arguments[2:5])
    for descriptor in (secrets_fd, ready_fd, lock_fd):
        os.set_inheritable(descriptor, False)
    with os.fdopen(secrets_fd, "rb") as pipe:
        secrets = json.loads(pipe.read() or b"{}")
    job = jobs.load(places, run, folder_name)
    assert job is not None, "jobs.start wrote spec.json before it started this process"
    wake = _waker()
    held: list[int] = []
    try:
        program = begin(job, secrets, held)
    except (Refusal, OSError) as error:
        refusal = as_refusal(error)
        files.remove(job.file(FileName.STATE))
        _tell(ready_fd, refusal.answer())
        return 1
    _tell(ready_fd, {"ready": True})
    os.close(lock_fd)
    finish(job, program, wake, held)
    if job.is_unattended:
        time.sleep(jobs.AGAIN_AFTER_S)
        jobs.revive_quietly(job)  # it was killed: another supervisor continues it
    return 0


def _tell(ready_fd: int, answer: Mapping[str, object]) -> None:
    # A starter that was killed meanwhile does not matter; the job does.
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, (json.dumps(answer) + "\n").encode())
    os.close(ready_fd)


def begin(job: Job, secrets: jobs.Secrets, held: list[int]) -> Program | None:
    """The job's program: adopted if it runs, started if it never was. None: it ended without an exit record. held: gets
    the locks that were taken for it."""
    state = job.state_file()
    # Who supervises is written before anything is started, so a second starter never comes between.
    state["supervisor"], state["job"] = processes.identity(os.getpid()), job.name
    state["run"], state["digest"] = job.run, job.digest
    program = programs.find_running(job)
    if not job.starts() and (program is not None or programs.has_ended(job)):
        programs.record_start(job, program.pid if program else 0)
    lost = program is None and job.is_train and job.starts() > 0
    if program is None and not lost:
        state["program"], state["started_at"] = None, time.time()
        files.remove(job.file(FileName.STOP))
    files.write_json(job.file(FileName.STATE), state)
    if lost:
        if boot_hook.goes_on(job):  # the boot itself does not end it
            lease.renew(job.lease_folder, job.lease_s, None)
        return None
    if program is None:
        lease.renew(job.lease_folder, job.lease_s, job.spec.get("deadline_s"))
        held += _take_locks(job) + sleep_inhibitor.keep_awake(job)
        restarts.note_start(job)
        program = programs.spawn(job, secrets, held)
    state["program"] = program.identity
    files.write_json(job.file(FileName.STATE), state)
    if boot_hook.goes_on(job):
        boot_hook.put(job.places)
    return program


def _take_locks(job: Job) -> list[int]:
    """Descriptors of the locks this job needs. One that this run's own last job still holds is awaited."""
    ends = time.monotonic() + SAME_RUN_WAIT_S
    while True:
        try:
            return _locks_now(job)
        except locks.Taken as taken:
            if taken.run != job.run or time.monotonic() > ends:
                raise
            time.sleep(0.1)


def _locks_now(job: Job) -> list[int]:
    holder: locks.Holder = {
        "run": job.run,
        "user": processes.user_name(),
        "pid": os.getpid(),
        "started_at": time.time(),
    }
    uuids = job.spec.get("gpus") or []
    if uuids:
        held = locks.take_gpus(uuids, holder)
        try:
            from .system import gpus

            gpus.refuse_busy(uuids)
        except Refusal:
            locks.let_go(held)
            raise
        return held
    if job.is_train:
        path = os.path.join(job.places.agent, "cpu.lock")
        return [locks.take(path, holder, Code.CPU_TAKEN, "this machine")]
    return []


def finish(job: Job, program: Program | None, wake: Callable[[float], None], held: list[int]) -> None:
    """Watches until the end, starts again what died and may, clears away what is left, writes exit.json and what is
    held."""
    others = nodes.of(job) if program is not None else None
    if others is not None:
        others.start()
    while True:
        code: int | None = None
        if program is not None:
            _watch(job, program, wake, others)
            code = None if program.adopted else program.poll()
        processes.kill_all(job.folder)
        pause_s, cause = together.verdict(job, code, others, partial(_rest, job, wake))
        program = None if pause_s is None else _start_again(job, pause_s, wake, held, others)
        if program is None:
            break
    ended = exit_record.write_exit(
        job, code, job.state_file().get("started_at"), cause, others.lost() if others else ()
    )
    if others is not None:
        others.farewell(ended["outcome"], ended["reason"])
    if job.is_train:
        manifest.write_holding(job)
        entries.revive(job.places)
        boot_hook.settle(job.places)


def _start_again(
    job: Job, pause_s: float, wake: Callable[[float], None], held: list[int], others: nodes.Nodes | None
) -> Program | None:
    """The next start of a training that died, from its newest checkpoint that verifies; None where it was asked to
    end meanwhile, or another training took its place."""
    ends = time.monotonic() + pause_s
    while time.monotonic() < ends:
        _rest(job, wake)
        if stopping.read_request(job) or (others is not None and others.lost()):
            return None
    try:
        if not held:
            held += _take_locks(job) + sleep_inhibitor.keep_awake(job)
        restarts.note_start(job)
        program = programs.spawn(job, {}, held)
    except (Refusal, OSError) as error:
        exit_record.note_refusal(job, as_refusal(error))
        return None
    state = job.state_file()
    state["supervisor"], state["program"] = processes.identity(os.getpid()), program.identity
    files.write_json(job.file(FileName.STATE), state)
    if others is not None:
        others.begin_again()
    return program


def _watch(job: Job, program: Program, wake: Callable[[float], None], others: nodes.Nodes | None) -> None:
    """Returns when the program is gone."""
    settings = job.spec.get("watchdog") or {}
    writes = job.is_train and not exit_record.is_other_node(job)
    steps = StepWatch(job.run_folder, settings, time.monotonic()) if writes else None
    progress, notices = _Progress(job, others), _Notices(job)
    while program.poll() is None:
        if not job.is_unattended:  # an offload ends with its machine, and the guard counts its hold
            progress.renew_lease()
            _end_by_lease(job)
        notices.act()
        long_logs.bound(job.log)
        verdict = steps.verdict(time.monotonic()) if steps else None
        if verdict and not stopping.read_request(job):
            _dump_stacks(job, wake)
            stopping.request_stop(
                job, run_files.OUTCOME_FAILED, verdict, float(settings.get("grace_s", WATCHDOG_GRACE_S))
            )
        if others is not None and (trouble := others.trouble()):
            stopping.request_stop(job, run_files.OUTCOME_FAILED, trouble, nodes.LOST_GRACE_S)
        elif others is not None and (wish := others.wish())[0]:
            stopping.request_stop(job, *wish, float(job.spec.get("grace_s") or GRACE_S))
        if stopping.read_request(job):
            stopping.stop(job, program, wake)
            return
        wake(TICK_S)


class _Progress:
    """Renews the lease while the job's files grow, here or on the head of several nodes, and where that has one."""

    def __init__(self, job: Job, others: nodes.Nodes | None) -> None:
        self.job, self.others = job, others
        self.sizes = self._sizes()
        self.renewed_at_s = self.looked_at_s = time.monotonic()

    def renew_lease(self) -> None:
        if self.job.is_train and time.monotonic() - self.looked_at_s > LOOK_AFTER_EVERY_S:
            self.looked_at_s = time.monotonic()
            store_index.revive(self.job.places, self.job.run)
            entries.revive(self.job.places)
        if time.monotonic() - self.renewed_at_s < lease.renew_every_s(self.job.lease_s):
            return
        sizes, heads_s = self._sizes(), 0.0 if self.others is None else self.others.lease_left_s()
        if sizes != self.sizes or heads_s > 0:
            order.revive(self.job.places)
            lease_s = self.job.lease_s if sizes != self.sizes else heads_s
            self.sizes, self.renewed_at_s = sizes, time.monotonic()
            lease.renew(self.job.lease_folder, lease_s, None)

    def _sizes(self) -> list[int]:
        own = [files.size_bytes(path) for path in self.job.followed_files().values()]
        return own if self.others is None else [*own, self.others.progress()]


class _Notices:
    """Where a spec says whom to ask whether the machine is taken away: writes down what was said, and stops the job in
    time for a last checkpoint."""

    def __init__(self, job: Job) -> None:
        self.job = job
        asked = job.spec.get("notice")
        self.watch = spot_notice.Watch(str(asked["url"])) if job.is_train and asked else None
        self.known: dict[str, object] = {}

    def act(self) -> None:
        if self.watch is None:
            return
        taken, warning = self.watch.taken(), self.watch.warning()
        notice: dict[str, object] = {"taken": taken, "warning": warning}
        if notice == self.known or not (taken or warning or self.known):
            return
        self.known = notice
        files.write_json(self.job.file(spot_notice.FILE), dict(notice, at=time.time()))
        if taken is not None:
            grace_s = min(
                float(self.job.spec.get("grace_s", GRACE_S)), max(0.0, taken["left_s"] - spot_notice.RESERVE_S)
            )
            reason = "the provider takes this machine away (%s at %s)" % (taken["action"], taken["time"] or "once")
            stopping.request_stop(self.job, Outcome.PREEMPTED, reason, grace_s)


def _rest(job: Job, wake: Callable[[float], None]) -> None:
    """Waits a moment while nothing of the job runs; its lease goes on."""
    _end_by_lease(job)
    wake(TICK_S)


def _end_by_lease(job: Job) -> None:
    """Asks for the end when the lease is over, and in time for a last checkpoint before the budget deadline."""
    grace_s = float(job.spec.get("grace_s", GRACE_S))
    # A lease file that was lost or torn must not make the job immortal: it starts again.
    left = lease.read(job.lease_folder) or lease.renew(job.lease_folder, job.lease_s, None)
    deadline_left_s = left["deadline_left_s"]
    if stopping.read_request(job):
        return
    if deadline_left_s is not None and deadline_left_s <= grace_s:
        stopping.request_stop(job, Outcome.LIMIT, "the budget deadline is reached", max(deadline_left_s, 0.0))
    elif left["left_s"] <= 0:
        stopping.request_stop(
            job, Outcome.LIMIT, "the lease ran out: no gptctl followed this run and it made no progress", grace_s
        )


def _dump_stacks(job: Job, wake: Callable[[float], None]) -> None:
    """SIGUSR1: the trainer's faulthandler writes every thread's stack into train.log."""
    processes.send(processes.ranks(job.folder), signal.SIGUSR1)
    ends = time.monotonic() + DUMP_S
    while time.monotonic() < ends:
        wake(DUMP_S)


def _waker() -> Callable[[float], None]:
    """A wait that ends early when a child dies or a stop request was announced by SIGTERM."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: None)

    def wake(seconds: float) -> None:
        if select.select([reading], [], [], seconds)[0]:
            os.read(reading, 4096)

    return wake

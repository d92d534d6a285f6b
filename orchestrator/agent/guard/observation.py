"""The facts that needed.py decides on, read from this machine: leases, jobs, checkpoints, attendance.

Example: `needed.left_s(observe(places, {}))`
"""

from __future__ import annotations

from ..checkpoints import manifest, store_index
from ..contract.names import GRACE_S, JobName, State
from ..job import jobs
from ..queue import entries
from ..system import files, lease
from ..system.paths import RUN_PATTERN, Places
from . import attendance
from .needed import MachineFacts, RunFacts

THEN_END = "end"


def observe(places: Places, ended: dict[str, float], *, revive: bool = False) -> MachineFacts:
    """The machine as it is now. ended: when each training was first seen ended, on CLOCK_BOOTTIME; new ends are added.
    revive: jobs that lost their supervisor get a new one."""
    if revive:
        entries.revive(places)
    own = lease.read(places.guard)
    return MachineFacts(
        own_lease_s=own["left_s"] if own else 0.0,
        deadline_left_s=own["deadline_left_s"] if own else None,
        is_attended=attendance.is_attended(places),
        runs=[_run(places, run, ended, revive) for run in runs(places)],
    )


def runs(places: Places) -> list[str]:
    """The runs with jobs on this machine."""
    return [name for name in files.listing(places.jobs) if RUN_PATTERN.match(name)]


def held(places: Places) -> int:
    """How many checkpoints of ended trainings are only here."""
    trains = [jobs.load(places, run, JobName.TRAIN) for run in runs(places)]
    return sum(unfetched(train.run_folder) for train in trains if train is not None and train.exit_record())


def unfetched(run_folder: str) -> int:
    """Kept checkpoints that nobody verified elsewhere."""
    return sum(entry.get("kept", False) and not entry["safe"] for entry in manifest.checkpoints(run_folder))


def _run(places: Places, run: str, ended: dict[str, float], revive: bool) -> RunFacts:
    own = lease.read(places.jobs_of(run))
    facts = RunFacts(lease_left_s=own["left_s"] if own else 0.0)
    train = jobs.load(places, run, JobName.TRAIN)
    if train is None:
        return facts
    state = (jobs.revive_quietly if revive else jobs.read_state)(train)["state"]
    facts = facts._replace(
        training=state,
        grace_s=float(train.spec.get("grace_s", GRACE_S)),
        hold_s=train.spec.get("hold_s"),
        may_end=_may_end(places, run),
    )
    if state not in (State.ENDED, State.LOST):
        ended.pop(run, None)  # it may have ended before, and go on without a node
        return facts
    count = unfetched(train.run_folder)
    if not count:
        return facts
    since_s = ended.setdefault(run, lease.now_s())
    if revive:
        store_index.revive(places, run)
    store = store_index.state(places, run)
    return facts._replace(unfetched=count, ended_for_s=lease.now_s() - since_s, store=store["state"] if store else None)


def _may_end(places: Places, run: str) -> bool:
    offload = store_index.job_of(places, run)
    return offload is not None and offload.spec.get("then") == THEN_END and store_index.is_done(places, run)

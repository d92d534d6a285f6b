"""Whether this machine is needed, and for how long: the one place that decides whether it lives.

It is needed as long as its own lease runs (renewed by whoever prepares it), a run's lease runs (renewed by progress and
followers), a training stops, or kept checkpoints lie here that nobody fetched and the run's `hold_s` is not over; never
past the deadline.
"""

from __future__ import annotations

import os
from typing import Any

from ..checkpoints import manifest, store_index
from ..contract.names import GRACE_S, FileName, JobName, State
from ..job import jobs
from ..system import files, lease
from ..system.paths import RUN_PATTERN, Places
from . import attendance

STORING_S = 30.0
STOPPING_S = 60.0
"""On top of a training's own grace: the longest that its stopping may take."""


def left_s(places: Places, ended: dict[str, float], *, look: Any = jobs.look) -> float:
    """Seconds until the machine is to be ended; 0 or less: now.

    ended: when each run's training was first seen ended, on CLOCK_BOOTTIME; new ends are added to it.
    """
    own = lease.read(places.guard) or {"left_s": 0.0, "deadline_left_s": None}
    if is_done(places) and not attendance.somebody_is_here(places):
        return 0.0
    needed = max([own["left_s"], *(_needed_s(places, run, ended, look) for run in runs(places))])
    deadline = own["deadline_left_s"]
    return float(needed if deadline is None else min(needed, deadline))


def is_done(places: Places) -> bool:
    """Whether every training here has ended with all that is kept verified in its store, and nothing else is asked of
    this machine: then no lease keeps it. The order `then` of the offload says whether it may go."""
    found = [store_index.job_of(places, run) for run in runs(places) if jobs.load(places, run, JobName.TRAIN)]
    return bool(found) and all(job is not None and _is_done(places, job) for job in found)


def _is_done(places: Places, offload: jobs.Job) -> bool:
    done = offload.spec.get("then") == "end" and store_index.is_done(places, offload.run)
    return done and not unfetched(places.run(offload.run))


def lease_left_s(places: Places, own: dict[str, Any]) -> float:
    """Without what a training adds by running: it may end at any moment."""
    found = [own, *filter(None, (lease.read(places.jobs_of(run)) for run in runs(places)))]
    if is_done(places):  # then only somebody who is here keeps it
        return 0.0
    left = max(float(each["left_s"]) for each in found)
    return left if own["deadline_left_s"] is None else min(left, own["deadline_left_s"])


def runs(places: Places) -> list[str]:
    return [name for name in files.listing(places.jobs) if RUN_PATTERN.match(name)]


def held(places: Places, run: str) -> list[int]:
    """Steps that wait to be fetched."""
    train = jobs.load(places, run, JobName.TRAIN)
    over = train is not None and os.path.exists(train.file(FileName.EXIT))
    return unfetched(places.run(run)) if over else []


def _needed_s(places: Places, run: str, ended: dict[str, float], look: Any) -> float:
    """For how long this run needs the machine."""
    kept = lease.read(places.jobs_of(run))
    needed = float(kept["left_s"]) if kept else 0.0
    train = jobs.load(places, run, JobName.TRAIN)
    if train is None:
        return needed
    state = look(train)["state"]
    if state == State.RUNNING:
        # When its lease is over it is stopped, with its grace for a last checkpoint.
        return needed + float(train.spec.get("grace_s", GRACE_S)) + STOPPING_S
    if state in (State.ENDED, State.LOST) and unfetched(places.run(run)):
        since = ended.setdefault(run, lease.now_s())
        store_index.revive(places, run)
        hold_s = train.spec.get("hold_s")
        held = float("inf") if hold_s is None else float(hold_s) - (lease.now_s() - since)
        if (store_index.state(places, run) or {}).get("state") == "uploading":
            held = max(held, STORING_S)  # what is on its way arrives
        return max(needed, held)
    return needed


def unfetched(run_folder: str) -> list[int]:
    """Steps of the kept checkpoints that nobody verified elsewhere."""
    return [entry["step"] for entry in manifest.checkpoints(run_folder) if entry["kept"] and not entry["safe"]]

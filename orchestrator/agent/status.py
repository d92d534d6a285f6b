"""What is going on, as one value: jobs, lease, step, checkpoints, warnings. Changes nothing and takes no lock.

Example::

    status(places, "quickstart-1120-k3f9qa")["runs"]["quickstart-1120-k3f9qa"]["step"]
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Optional, cast

from trainer import run_files

from .checkpoints import manifest, store_index
from .contract.answers import Holding, JobStatus, KeepStatus, MachineStatus, RunStatus, SpotNotice
from .contract.names import Code, FileName, JobName, State
from .guard import order
from .job import jobs, starts, watchdog
from .job.jobs import Job
from .queue import entries
from .system import files, lease
from .system.paths import RUN_PATTERN, Places
from .system.refusal import Refusal

COLLAPSE = 0.5
RECENT_LINES = 50


def status(places: Places, run: str | None) -> MachineStatus:
    """One run, or all of them. Raises Refusal `no-such-run`."""
    names = set(files.listing(places.jobs)) | set(files.listing(places.runs))
    known = sorted(name for name in names if RUN_PATTERN.match(name))
    if run is not None and run not in known:
        raise Refusal(Code.NO_SUCH_RUN, "no run %s on this machine" % run)
    wanted = [run] if run is not None else known
    runs = {name: of_run(places, name) for name in wanted}
    return {"runs": runs, "guard": order.status(places), "time_s": time.time()}


def of_run(places: Places, run: str) -> RunStatus:
    """A run's entry of the answer; the same goes with every heartbeat of `follow`."""
    found = jobs.of_run(places, run)
    described = {os.path.basename(job.folder): _job_entry(job) for job in found}
    train = next((job for job in found if job.is_train), None)
    folder = places.run(run)
    recent = _recent_metrics(folder)
    newest = run_files.metric_line(recent[0]) if recent else None
    return {
        "jobs": {name: entry for name, entry in described.items() if entry["state"] != State.NONE},
        "lease": lease.read(places.jobs_of(run)),
        "guard": order.status(places),
        "step": newest.step if newest else None,
        "metrics": recent[0] if recent else None,
        "checkpoints": manifest.steps(folder),
        "latest": manifest.linked_step(folder, run_files.LATEST),
        "best": manifest.linked_step(folder, run_files.BEST),
        "safe": manifest.safe_steps(folder),
        "store": store_index.state(places, run),
        "keep": _keep(found),
        "holding": _holding(train),
        "sizes": {name: files.size_bytes(path) for name, path in train.followed_files().items()} if train else {},
        "notice": _notice(train),
        "ahead": entries.ahead(places, run),
        "deaths": train.deaths() if train else [],
        "warnings": _warnings(folder, recent),
    }


def _keep(found: list[Job]) -> KeepStatus | None:
    """On a home box: how its calls to the machine that trains go."""
    kept = [job for job in found if job.name == JobName.KEEP]
    return cast("Optional[KeepStatus]", files.read_json(kept[-1].file(store_index.KEEP_STATE))) if kept else None


def _notice(train: Job | None) -> SpotNotice | None:
    """What the provider said of taking the machine away."""
    return cast("Optional[SpotNotice]", files.read_json(train.file(FileName.NOTICE))) if train else None


def _holding(train: Job | None) -> Holding | None:
    """What the machine keeps after the end."""
    return cast("Optional[Holding]", files.read_json(train.file(FileName.HOLDING))) if train else None


def _job_entry(job: Job) -> JobStatus:
    found = jobs.read_state(job)
    if found["exit"]:
        # `follow` and `start` give the last lines; a status of a hundred runs must stay small.
        found["exit"].pop("last_lines", None)
    attempt = starts.number(job) if job.is_train else 0
    return {**found, "job": job.name, "digest": job.digest, "starts": job.starts(), "attempt": attempt}


def _recent_metrics(run_folder: str) -> list[dict[str, object]]:
    """The newest lines of metrics, newest first."""
    lines = filter(run_files.metric_line, files.last_json_lines(os.path.join(run_folder, run_files.METRICS)))
    return list(itertools.islice(lines, RECENT_LINES))


def _warnings(run_folder: str, recent: list[dict[str, object]]) -> list[str]:
    found = [_disk_warning(run_folder), _speed_warning(recent)]
    count = watchdog.nonfinite_lines(os.path.join(run_folder, run_files.METRICS))
    if count:
        found.append("the loss is not finite in the last %d lines of metrics" % count)
    return [warning for warning in found if warning]


def _speed_warning(recent: list[dict[str, object]]) -> str | None:
    lines = filter(None, map(run_files.metric_line, recent))
    rates = [line.tokens_per_second for line in lines if line.tokens_per_second]
    if len(rates) < 10:
        return None
    usual = sorted(rates[1:])[len(rates) // 2]
    if rates[0] >= COLLAPSE * usual:
        return None
    return "throughput fell to %.0f tokens/s; the median of the last %d lines is %.0f" % (rates[0], len(rates), usual)


def _disk_warning(run_folder: str) -> str | None:
    """Forecast: free space against the checkpoints still to come under this run's retention."""
    known = manifest.steps(run_folder)
    if not known:
        return None
    newest = os.path.join(run_folder, run_files.CHECKPOINTS, run_files.checkpoint_name(known[-1]))
    each = sum(files.size_bytes(os.path.join(newest, name)) for name in files.listing(newest))
    to_come = _checkpoints_to_come(run_folder, known)
    disk = os.statvfs(run_folder)
    free = disk.f_bavail * disk.f_frsize
    if free >= to_come * each:
        return None
    return "the disk has %.1f GB free; %d checkpoints of %.1f GB are to come" % (free / 1e9, to_come, each / 1e9)


def _checkpoints_to_come(run_folder: str, known: list[int]) -> int:
    """How many more folders are on the disk at the worst moment: one being written, and what retention will add."""
    train = manifest.config_table(run_folder, "train")
    steps, every = train.get("steps", 0), train.get("checkpoint_every", 0)
    planned = (steps - known[-1] + every - 1) // every if every and steps > known[-1] else 0
    retention = manifest.retention(run_folder)
    keep_every = retention.keep_every
    forever = (steps // keep_every - known[-1] // keep_every) if keep_every and steps > known[-1] else 0
    # newest keep_last, best, and the one being written
    moving = max(0, retention.keep_last + 2 - len(known))
    return min(planned, forever + max(moving, 1)) if planned else 0

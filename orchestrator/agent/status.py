"""What is going on, as one value: jobs, lease, step, checkpoints, warnings. Changes nothing and takes no lock.

Example::

    status(places, "quickstart-1120-k3f9qa")["runs"]["quickstart-1120-k3f9qa"]["step"]
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from trainer import contract

from .checkpoints import manifest, store_index
from .contract.names import Code, FileName, JobName, State
from .guard import order
from .job import jobs, spot_notice, watchdog
from .job.jobs import Job
from .system import files, lease
from .system.paths import RUN_PATTERN, Places
from .system.refusal import Refusal

COLLAPSE = 0.5
RECENT_LINES = 50


def status(places: Places, run: str | None) -> dict[str, Any]:
    """One run, or all of them. Raises Refusal `no-such-run`."""
    names = set(files.listing(places.jobs)) | set(files.listing(places.runs))
    known = sorted(name for name in names if RUN_PATTERN.match(name))
    if run is not None and run not in known:
        raise Refusal(Code.NO_SUCH_RUN, "no run %s on this machine" % run)
    wanted = [run] if run is not None else known
    runs = {name: of_run(places, name) for name in wanted}
    return {"runs": runs, "guard": order.status(places), "time_s": time.time()}


def of_run(places: Places, run: str) -> dict[str, Any]:
    """A run's entry of the answer; the same goes with every heartbeat of `follow`."""
    found = jobs.of_run(places, run)
    entries = {os.path.basename(job.folder): _job_entry(job) for job in found}
    train = next((job for job in found if job.is_train), None)
    folder = places.run(run)
    recent = _recent_metrics(folder)
    return {
        "jobs": {name: entry for name, entry in entries.items() if entry["state"] != State.NONE},
        "lease": lease.read(places.jobs_of(run)),
        "guard": order.status(places),
        "step": recent[0].get("step") if recent else None,
        "metrics": recent[0] if recent else None,
        "checkpoints": manifest.steps(folder),
        "latest": manifest.linked_step(folder, contract.LATEST),
        "best": manifest.linked_step(folder, contract.BEST),
        "safe": manifest.safe_steps(folder),
        "store": store_index.state(places, run),
        "keep": _keep(found),
        "holding": files.read_json(train.file(FileName.HOLDING)) if train else None,
        "sizes": {name: files.size_bytes(path) for name, path in train.followed_files().items()} if train else {},
        "notice": _notice(train),
        "warnings": _warnings(folder, recent),
    }


def _keep(found: list[Job]) -> dict[str, Any] | None:
    """On a home box: how its calls to the machine that trains go."""
    kept = [job for job in found if job.name == JobName.KEEP]
    return files.read_json(kept[-1].file(store_index.KEEP_STATE)) if kept else None


def _notice(train: Job | None) -> dict[str, Any] | None:
    """What the provider said of taking the machine away."""
    return files.read_json(train.file(spot_notice.FILE)) if train else None


def _job_entry(job: Job) -> dict[str, Any]:
    found = dict(jobs.look(job), job=job.name, digest=job.digest, starts=job.starts())
    if found["exit"]:
        # `follow` and `start` give the last lines; a status of a hundred runs must stay small.
        found["exit"] = {key: value for key, value in found["exit"].items() if key != "last_lines"}
    return found


def _recent_metrics(run_folder: str) -> list[dict[str, Any]]:
    """The newest lines of metrics, newest first."""
    lines = files.last_json_lines(os.path.join(run_folder, contract.METRICS))
    return list(itertools.islice(lines, RECENT_LINES))


def _warnings(run_folder: str, recent: list[dict[str, Any]]) -> list[str]:
    found = [_disk_warning(run_folder), _speed_warning(recent)]
    count = watchdog.nonfinite_lines(os.path.join(run_folder, contract.METRICS))
    if count:
        found.append("the loss is not finite in the last %d lines of metrics" % count)
    return [warning for warning in found if warning]


def _speed_warning(recent: list[dict[str, Any]]) -> str | None:
    rates = [line["tokens_per_second"] for line in recent if line.get("tokens_per_second")]
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
    newest = os.path.join(run_folder, contract.CHECKPOINTS, contract.checkpoint_name(known[-1]))
    each = sum(files.size_bytes(os.path.join(newest, name)) for name in files.listing(newest))
    config = files.read_json(os.path.join(run_folder, contract.CONFIG)) or {}
    to_come = _checkpoints_to_come(config, known)
    disk = os.statvfs(run_folder)
    free = disk.f_bavail * disk.f_frsize
    if free >= to_come * each:
        return None
    return "the disk has %.1f GB free; %d checkpoints of %.1f GB are to come" % (free / 1e9, to_come, each / 1e9)


def _checkpoints_to_come(config: dict[str, Any], known: list[int]) -> int:
    """How many more folders lie on the disk at the worst moment: one being written, and what retention will add."""
    train, retention = config.get(JobName.TRAIN) or {}, config.get("retention") or {}
    steps, every = int(train.get("steps") or 0), int(train.get("checkpoint_every") or 0)
    planned = (steps - known[-1] + every - 1) // every if every and steps > known[-1] else 0
    keep_every = int(retention.get("keep_every") or 0)
    forever = (steps // keep_every - known[-1] // keep_every) if keep_every and steps > known[-1] else 0
    # newest keep_last, best, and the one being written
    moving = max(0, int(retention.get("keep_last", 2)) + 2 - len(known))
    return min(planned, forever + max(moving, 1)) if planned else 0

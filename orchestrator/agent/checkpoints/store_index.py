"""What a run has in its checkpoint store, as the machine knows it: the index object, and the state that `status` shows.

The index is what makes a checkpoint findable: it names every one that was read back and verified, and at the end how
the training ended. A copy is in the job's folder, so that a killed offload resumes where it was.

Example::

    index = Index.load(job); index.add(entry, "step-000617"); index.content()
    state(places, run)       # {'state': 'safe', 'safe_step': 617, 'problem': None, ...}, or None without a store
"""

from __future__ import annotations

import json
import os
from typing import Dict, List, Optional, TypedDict, cast

from trainer import run_files

from ..contract.answers import CheckpointEntry, ExitRecord, PromisedFile, StoreStatus
from ..contract.names import FileName, JobName, StoreState
from ..job import jobs
from ..job.jobs import Job
from ..system import files
from ..system.paths import Places

STATE = FileName.STORE
KEEP_STATE = FileName.KEEP
"""Of the job on a home box, see keep.py."""
JOB = JobName.OFFLOAD


class StoredEntry(TypedDict, total=False):
    """A checkpoint in the store, as the index object lists it."""

    step: int
    folder: str
    files: Dict[str, PromisedFile]
    manifest_sha256: str
    manifest_size_bytes: int
    best: bool
    latest: bool


class IndexFile(TypedDict, total=False):
    """The index object. `folders`: the spare folder of each unplanned checkpoint."""

    run: str
    checkpoints: List[StoredEntry]
    files: Dict[str, PromisedFile]
    ended: Optional[ExitRecord]
    folders: Dict[str, str]


class Index:
    """The checkpoints in the store by step, and the run's other files there."""

    def __init__(self, job: Job, known: IndexFile) -> None:
        self.path = job.file(FileName.INDEX)
        self.run = job.run
        self.checkpoints = {entry["step"]: entry for entry in known.get("checkpoints") or []}
        self.files = dict(known.get("files") or {})
        self.ended = known.get("ended")
        self.folders: dict[str, str] = dict(known.get("folders") or {})
        """Which spare folder an unplanned checkpoint got; also before it was whole there."""

    @staticmethod
    def load(job: Job) -> Index:
        """What an earlier process of this job wrote down."""
        return Index(job, cast("IndexFile", files.read_json(job.file(FileName.INDEX)) or {}))

    def add(self, entry: CheckpointEntry, folder: str) -> None:
        """A checkpoint that the store gave back whole."""
        self.checkpoints[entry["step"]] = {
            "step": entry["step"],
            "folder": folder,
            "files": entry["files"],
            "manifest_sha256": entry["manifest_sha256"],
            "manifest_size_bytes": entry["manifest_size_bytes"],
        }

    def link(self, best: int | None, latest: int | None) -> None:
        """Notes which ones `best` and `latest` point to."""
        for step, entry in self.checkpoints.items():
            entry["best"], entry["latest"] = step == best, step == latest

    def let_go(self, best: int | None, retention: run_files.Retention) -> list[StoredEntry]:
        """Takes out what retention keeps no longer, and returns it, the oldest first."""
        kept = retention.kept(self.checkpoints, best)
        return [self.checkpoints.pop(step) for step in sorted(self.checkpoints) if step not in kept]

    def content(self) -> bytes:
        """The object's bytes."""
        ordered = [self.checkpoints[step] for step in sorted(self.checkpoints)]
        value = {"run": self.run, "checkpoints": ordered, "files": self.files, "ended": self.ended}
        return (json.dumps(dict(value, folders=self.folders), indent=1) + "\n").encode()

    def save(self) -> None:
        """The copy on this machine."""
        files.write_bytes(self.path, self.content())


def job_of(places: Places, run: str) -> Job | None:
    """The run's offload, the newest if there are several."""
    names = [name for name in files.listing(places.jobs_of(run)) if name.startswith(JOB + "-")]
    found = [job for job in (jobs.load(places, run, name) for name in names) if job]
    return max(found, key=lambda job: os.stat(job.file(FileName.SPEC)).st_mtime_ns, default=None)


def revive(places: Places, run: str) -> None:
    """Starts an offload that was killed; it has its URLs as long as the machine was not restarted."""
    job = job_of(places, run)
    if job is not None:
        jobs.revive_quietly(job)


def state(places: Places, run: str) -> StoreStatus | None:
    """What the offload last wrote down of itself; None where the run has no store."""
    job = job_of(places, run)
    if job is None:
        return None
    known = cast("Optional[StoreStatus]", files.read_json(job.file(STATE)))
    if known is None:
        known = {"state": StoreState.STARTING, "problem": None, "safe": [], "probed": False}
    known["store"], known["finished"] = job.spec.get("store"), _is_finished(job)
    return known


def is_done(places: Places, run: str) -> bool:
    """Whether the training is over and everything that is kept is verified in the store, and the logs are."""
    job = job_of(places, run)
    return job is not None and _is_finished(job)


def _is_finished(job: Job) -> bool:
    ended = job.exit_record()
    return ended is not None and ended["outcome"] == run_files.OUTCOME_FINISHED

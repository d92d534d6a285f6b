"""Checkpoints in the run folder: complete ones only, with what their own manifest promises.

The trainer writes them, this module reads; the one thing it writes is the SAFE mark.

Example::

    manifest(run_folder)["checkpoints"][0]["manifest_sha256"]
    mark_safe(run_folder, 617, manifest_sha256)
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Mapping

from trainer import run_files

from ..contract.answers import CheckpointEntry, Manifest, PromisedFile, SafeAnswer
from ..contract.names import Code, FileName
from ..job.jobs import Job
from ..system import files
from ..system.refusal import Refusal

FILES = (run_files.CONFIG, run_files.METRICS, run_files.EVENTS, run_files.LOG, run_files.EXIT)


def manifest(run_folder: str) -> Manifest:
    """Every complete checkpoint, oldest first, and the sizes of the run folder's own files."""
    if not os.path.isdir(run_folder):
        raise Refusal(Code.NO_SUCH_RUN, "no run folder %s on this machine" % run_folder)
    sizes = {name: files.size_bytes(os.path.join(run_folder, name)) for name in FILES}
    return {"checkpoints": checkpoints(run_folder), "files": sizes}


def checkpoints(run_folder: str) -> list[CheckpointEntry]:
    """Folders with a manifest whose files are all there in the promised sizes."""
    folder = os.path.join(run_folder, run_files.CHECKPOINTS)
    found = [entry for entry in (_read(folder, name) for name in files.listing(folder)) if entry]
    best, latest = linked_step(run_folder, run_files.BEST), linked_step(run_folder, run_files.LATEST)
    kept = retention(run_folder).kept([entry["step"] for entry in found], best)
    for entry in found:
        step = entry["step"]
        entry.update({"kept": step in kept, "best": step == best, "latest": step == latest})
    return sorted(found, key=lambda entry: entry["step"])


def steps(run_folder: str) -> list[int]:
    """Steps of the folders that have a manifest: what `status` shows without reading further."""
    folder = os.path.join(run_folder, run_files.CHECKPOINTS)
    found = ((run_files.checkpoint_step(name), os.path.join(folder, name)) for name in files.listing(folder))
    return sorted(
        step for step, path in found if step is not None and os.path.isfile(os.path.join(path, run_files.MANIFEST_FILE))
    )


def safe_steps(run_folder: str) -> list[int]:
    """Steps that carry a SAFE mark."""
    return [step for step in steps(run_folder) if os.path.exists(_file(run_folder, step, run_files.SAFE_FILE))]


def linked_step(run_folder: str, link: str) -> int | None:
    """The step that `latest` or `best` points to."""
    try:
        target = os.readlink(os.path.join(run_folder, run_files.CHECKPOINTS, link))
    except OSError:
        return None
    return run_files.checkpoint_step(os.path.basename(target.rstrip("/")))


def mark_safe(run_folder: str, step: int, manifest_sha256: str) -> SafeAnswer:
    """Writes SAFE if the manifest on disk is the one that was verified elsewhere. Twice is fine."""
    try:
        with open(_file(run_folder, step, run_files.MANIFEST_FILE), "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()
    except OSError:
        raise Refusal(Code.NO_SUCH_CHECKPOINT, "no checkpoint of step %d in %s" % (step, run_folder)) from None
    if found != manifest_sha256:
        raise Refusal(
            Code.MANIFEST_DIFFERS, "step %d: the manifest here is %s, not %s" % (step, found, manifest_sha256)
        )
    files.write_bytes(_file(run_folder, step, run_files.SAFE_FILE), (found + "\n").encode())
    return {"step": step, "safe": True}


def write_holding(job: Job) -> None:
    """After the end: which kept checkpoints are here and whether their bytes are what the manifest says."""
    kept = [entry for entry in checkpoints(job.run_folder) if entry["kept"]]
    held = [{"step": entry["step"], "verified": verified(job.run_folder, entry)} for entry in kept]
    files.write_json(job.file(FileName.HOLDING), {"checkpoints": held})


def verified(run_folder: str, entry: CheckpointEntry) -> bool:
    """Whether every file of the checkpoint has its promised sha256."""
    return all(
        files.sha256_of(_file(run_folder, entry["step"], name)) == promised["sha256"]
        for name, promised in entry["files"].items()
    )


def _file(run_folder: str, step: int, name: str) -> str:
    return os.path.join(run_folder, run_files.CHECKPOINTS, run_files.checkpoint_name(step), name)


def _read(folder: str, name: str) -> CheckpointEntry | None:
    step = run_files.checkpoint_step(name)
    path = os.path.join(folder, name)
    if step is None or os.path.islink(path):
        return None
    try:
        with open(os.path.join(path, run_files.MANIFEST_FILE), "rb") as file:
            content = file.read()
        listed = {key: _promised(value) for key, value in json.loads(content)["files"].items()}
        complete = all(os.stat(os.path.join(path, key)).st_size == value["size_bytes"] for key, value in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {
        "step": step,
        "name": name,
        "files": listed,
        "manifest_sha256": hashlib.sha256(content).hexdigest(),
        "manifest_size_bytes": len(content),
        "safe": os.path.exists(os.path.join(path, run_files.SAFE_FILE)),
    } if complete else None  # fmt: skip


def _promised(value: Mapping[str, object]) -> PromisedFile:
    size_bytes, sha256 = value["size_bytes"], value["sha256"]
    if not isinstance(size_bytes, int) or not isinstance(sha256, str):
        raise ValueError("a manifest has sizes as numbers and digests as text")
    return {"size_bytes": size_bytes, "sha256": sha256}


def config_table(run_folder: str, name: str) -> dict[str, int]:
    """The whole numbers of one table of the run's config.json; empty where it cannot be read."""
    table = (files.read_json(os.path.join(run_folder, run_files.CONFIG)) or {}).get(name)
    return {key: value for key, value in table.items() if isinstance(value, int)} if isinstance(table, dict) else {}


def retention(run_folder: str) -> run_files.Retention:
    """What the run keeps, from its config.json."""
    stored, usual = config_table(run_folder, "retention"), run_files.Retention()
    return usual._replace(**{key: stored[key] for key in usual._fields if key in stored})

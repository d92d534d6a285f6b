"""Checkpoints in a store, brought to a machine or to this side: pulled from the store itself, in parallel,
resumed at the byte, verified before they count. On this side the agent of this computer does the same. What is on a
home box comes here by SSH, as from any machine.

Example: `bring(context, "s3://bucket/prefix/RUN", [checkpoint], context.mirror / "checkpoints")`
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.checkpoints.store_index import StoredCheckpoint
from orchestrator.core.errors import RemoteError, StorageError
from orchestrator.core.fleet.lease import lease_s
from orchestrator.core.ports import Part
from orchestrator.remote.agent_client import pull_job
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.local_agent import agent_here
from orchestrator.remote.whole_files import require_space
from orchestrator.stages.checkpoints import mirrored_files
from orchestrator.stages.checkpoints.copies import link
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import progress
from orchestrator.stores.home_box import HomeBoxStorage
from trainer import run_files

PULL_S = 86_400.0
"""For how long the URLs of a pull are good."""


def pull(context: RunContext, agent: Agent, place: str, files: Mapping[str, FileEntry], folder: str) -> None:
    """The machine of `agent` pulls these files of the folder `place` into its own `folder`.

    Raises RemoteError when the store does not give it, else as pull_job.pull."""
    storage = context.storage(place)

    def parts() -> list[Part]:
        return [
            replace(
                storage.download_plan(f"{place}/{name}", f"{folder}/{name}", 0, entry.size_bytes, PULL_S),
                sha256=entry.sha256,
            )
            for name, entry in files.items()
        ]

    try:
        pull_job.pull(agent, context.run_id, parts, progress(context, "store"), lease_s=lease_s())
    except StorageError as error:  # the machine could not have it, although this side could read the store's index
        raise RemoteError(error.message, error.hint) from error


def pull_here(context: RunContext, place: str, files: Mapping[str, FileEntry], landing: str, *, what: str) -> Path:
    """These files of the folder `place`, on this side: verified, in the folder `landing` of the local machine's own."""
    agent = agent_here(context.home)
    folder = Path(agent.root) / landing
    storage = context.storage(place)
    if isinstance(storage, HomeBoxStorage):
        storage.pull(place, files, folder, progress(context, what))
    else:
        pull(context, agent, place, files, landing)
    return folder


def bring(context: RunContext, place: str, checkpoints: Sequence[StoredCheckpoint], folder: Path) -> None:
    """Checkpoints of a run's folder in the store, to this side: verified, under their steps' names, and linked."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    missing = [each for each in checkpoints if not is_here(folder / run_files.checkpoint_name(each.step), each)]
    require_space(folder, sum(each.size_bytes for each in missing))
    for each in missing:
        landing = f"store/{context.run_id}/{each.folder}"
        here = pull_here(context, f"{place}/{each.folder}", each.files, landing, what=each.folder)
        _move(here, folder / run_files.checkpoint_name(each.step))
    for each in checkpoints:
        for name, is_it in ((run_files.LATEST, each.latest), (run_files.BEST, each.best)):
            if is_it:
                link(folder / name, run_files.checkpoint_name(each.step))


def bring_logs(context: RunContext, place: str, files: Mapping[str, FileEntry]) -> None:
    """The run's own files, where the store has more of them than there is here."""
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    longer = {
        name: entry
        for name, entry in files.items()
        if name in (run_files.METRICS, run_files.EVENTS, run_files.LOG)
        and entry.size_bytes > mirrored_files.position(context.mirror / name)
    }
    if not longer:
        return
    here = pull_here(context, place, longer, f"store/{context.run_id}/logs", what="logs")
    for name in longer:
        mirrored_files.replace(context.mirror / name, here / name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def is_here(folder: Path, wanted: StoredCheckpoint) -> bool:
    """Whether exactly this checkpoint is there already, whole."""
    try:
        manifest = (folder / run_files.MANIFEST_FILE).read_bytes()
    except OSError:
        return False
    sizes = all(_size(folder / name) == entry.size_bytes for name, entry in wanted.files.items())
    return sizes and hashlib.sha256(manifest).hexdigest() == wanted.files[run_files.MANIFEST_FILE].sha256


def _move(source: Path, destination: Path) -> None:
    if destination.exists():
        shutil.rmtree(destination)
    fresh = destination.with_name(f".tmp-{destination.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.move(source, fresh)
    os.replace(fresh, destination)

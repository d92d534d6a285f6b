"""What lies in a checkpoint store, brought to a machine or to this side: pulled from the store itself, in parallel,
going on at the byte, verified before it counts. On this side the agent of this computer does it as well. What lies on a
home box comes here by SSH, as from any machine.

Example: `bring(context, "s3://bucket/prefix/RUN", [checkpoint], context.mirror / "checkpoints")`
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agent.contract.names import JobName
from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.checkpoints.store_index import StoredCheckpoint
from orchestrator.core.errors import RemoteError
from orchestrator.core.ports import Address
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.local_shell import LocalShell
from orchestrator.remote.whole_files import require_space
from orchestrator.stages.checkpoints.copies import link
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline
from orchestrator.stages.machine.progress import progress
from orchestrator.stores.home_box import HomeBoxStorage
from trainer import contract

PULL_S = 86_400.0
"""For how long the URLs of a pull are good."""


def pull(context: RunContext, agent: Agent, place: str, files: Mapping[str, FileEntry], folder: str) -> None:
    """The machine of `agent` pulls these files of the folder `place` into its own `folder`. Raises RemoteError."""
    storage = context.storage(place)
    parts, secrets = [], []
    for name, entry in files.items():
        size, destination = entry.size_bytes, f"{folder}/{name}"
        plan = storage.download_plan(f"{place}/{name}", destination, 0, size, PULL_S)
        parts.append({"offset": 0, "size_bytes": size, "destination": destination, "sha256": entry.sha256})
        secrets.append({"url": plan.url, "headers": dict(plan.headers)})
    digest = hashlib.sha256(json.dumps([place, parts]).encode()).hexdigest()[:16]
    agent.start(JobName.PULL, context.run_id, digest, {"parts": parts}, {"parts": secrets})
    exit_record = agent.wait(context.run_id, JobName.PULL, lambda line: _show(context, line), digest)
    if exit_record["outcome"] != "finished":
        said = " ".join(exit_record.get("last_lines") or []) or exit_record.get("reason")
        raise RemoteError(f"{place}: {said}", "repeat the command: what has arrived is not pulled again")


def _show(context: RunContext, line: Mapping[str, Any]) -> None:
    context.emit("progress", what="store", done=line.get("bytes_done"), total=line.get("bytes_total"), unit="bytes")
    deadline.extend(context)


def pull_here(context: RunContext, place: str, files: Mapping[str, FileEntry], landing: str, *, what: str) -> Path:
    """These files of the folder `place`, on this side: verified, in the folder `landing` of the local machine's own."""
    agent = _here(context)
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
    missing = [each for each in checkpoints if not is_here(folder / contract.checkpoint_name(each.step), each)]
    require_space(folder, sum(each.size_bytes for each in missing))
    for each in missing:
        landing = f"store/{context.run_id}/{each.folder}"
        here = pull_here(context, f"{place}/{each.folder}", each.files, landing, what=each.folder)
        _move(here, folder / contract.checkpoint_name(each.step))
    for each in checkpoints:
        for name, is_it in ((contract.LATEST, each.latest), (contract.BEST, each.best)):
            if is_it:
                link(folder / name, contract.checkpoint_name(each.step))


def bring_logs(context: RunContext, place: str, files: Mapping[str, FileEntry]) -> None:
    """The run's own files, where the store has more of them than there is here."""
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    longer = {
        name: entry
        for name, entry in files.items()
        if name in (contract.METRICS, contract.EVENTS, contract.LOG) and entry.size_bytes > _size(context.mirror / name)
    }
    if not longer:
        return
    here = pull_here(context, place, longer, f"store/{context.run_id}/logs", what="logs")
    for name in longer:
        shutil.move(here / name, context.mirror / name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def is_here(folder: Path, wanted: StoredCheckpoint) -> bool:
    """Whether this very checkpoint lies there already, whole."""
    try:
        manifest = (folder / contract.MANIFEST_FILE).read_bytes()
    except OSError:
        return False
    sizes = all(_size(folder / name) == entry.size_bytes for name, entry in wanted.files.items())
    return sizes and hashlib.sha256(manifest).hexdigest() == wanted.files[contract.MANIFEST_FILE].sha256


def _move(source: Path, destination: Path) -> None:
    if destination.exists():
        shutil.rmtree(destination)
    fresh = destination.with_name(f".tmp-{destination.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.move(source, fresh)
    os.replace(fresh, destination)


def _here(context: RunContext) -> Agent:
    """The agent of this computer, in the folder that host `local` has too."""
    return Agent(LocalShell(Address()), str(context.home / "machine"), sys.executable)

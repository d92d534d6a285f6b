"""The URLs with which this machine stores a run's checkpoints: made ahead by the laptop, kept in memory only.

They travel with `start offload` and with every renewal, and end after `lasts_s`, counted on this machine's own clock
since boot. It must not send anything; offload.py does.

Example of what is kept (every slot: {"put" or "parts", "part_bytes" and "complete"; "get"; "delete"})::

    {"lasts_s": 518400, "probe": SLOT, "index": SLOT, "files": {"metrics.jsonl": SLOT, ...},
     "steps": {"step-000617": {"model.safetensors": SLOT, ...}}, "spare": {"spare-01": {...}}}

or, for a repository of the Hub (hub_store.py), which ends when its token does::

    {"lasts_s": 518400, "hub": {"endpoint", "repo", "token", "folder"}}

or, for a home box that calls (home_store.py), the line that lets its key in::

    {"lasts_s": 518400, "home": {"authorized": 'restrict,command="..." ssh-ed25519 AAAA...'}}
"""

from __future__ import annotations

import json
from typing import cast

from ..contract.names import Code
from ..contract.requests import Slot, StoreSecrets
from ..job.jobs import Job, Secrets
from ..system import lease, memory_files, processes
from ..system.refusal import Refusal

KIND = "store"


class StoreAccess(StoreSecrets, total=False):
    """The secrets as kept, with the moment they came, on this machine's clock since boot."""

    boot_id: str
    received_boottime: float


def keep(job: Job, secrets: Secrets) -> None:
    """Replaces what is known. Nothing where no URLs came: those that are kept still count."""
    if not secrets:
        return
    way = secrets.get("hub") or secrets.get("home") or secrets.get("steps")
    if not isinstance(way, dict) or not isinstance(secrets.get("lasts_s"), (int, float)):
        raise Refusal(Code.BAD_REQUEST, "offload: its secrets need `lasts_s` and `steps`, `hub` or `home`")
    stamp = {"boot_id": processes.boot_id(), "received_boottime": lease.now_s()}
    memory_files.put(KIND, job.folder, json.dumps({**secrets, **stamp}))


def read(job: Job) -> StoreAccess | None:
    """What was kept; None after a reboot, or when it was never sent."""
    found = memory_files.read(KIND, job.folder)
    try:
        return cast("StoreAccess", json.loads(found)) if found else None
    except ValueError:
        return None


def changed_at(job: Job) -> float:
    """Another number after every renewal."""
    return memory_files.written_at(KIND, job.folder)


def left_s(urls: StoreAccess) -> float:
    """For how long the URLs are still good, by this machine's clock."""
    return float(urls["lasts_s"]) - (lease.now_s() - float(urls["received_boottime"]))


def forget(job: Job) -> None:
    memory_files.forget(KIND, job.folder)


def folder_for(urls: StoreAccess, name: str, taken: dict[str, str]) -> str | None:
    """Where in the store a checkpoint goes: under its own name if that was planned, else into a spare folder.

    taken: what was given out before, checkpoint name to folder; grows. None when no folder is left.
    """
    if name in urls["steps"]:
        return name
    if name not in taken:
        free = sorted(set(urls.get("spare") or {}) - set(taken.values()))
        if not free:
            return None
        taken[name] = free[0]
    return taken[name]


def slots_of(urls: StoreAccess, folder: str) -> dict[str, Slot]:
    """File name to slot."""
    return dict(urls["steps"].get(folder) or (urls.get("spare") or {}).get(folder) or {})

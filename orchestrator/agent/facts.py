"""What this machine is and has, in one answer. Looks only; the one file it makes is a trial of writing, removed again.

Example::

    facts(places, None)["disk"]["free_bytes"]
"""

from __future__ import annotations

import glob
import os
import platform
import shutil
import socket
import sys
import time
from typing import cast

from .contract.facts import Environment, Facts, Memory
from .job import interfaces
from .job.power import boot_hook
from .setup import interpreters
from .system import files, folder_trial, gpus, lease, locks, processes
from .system.paths import Places

TOOLS = ("rsync", "tar", "ssh", "gcc", "uv")


def facts(places: Places, python: str | None) -> Facts:
    """Everything a stage decides by. `python` is an interpreter to describe first."""
    found = gpus.look()
    disk = os.statvfs(places.root)
    trial = folder_trial.tried(places.root)
    return {
        "root": places.root,
        "hostname": socket.gethostname(),
        "user": processes.user_name(),
        "home": os.path.expanduser("~"),
        "arch": platform.machine(),
        "system": {"os": _os_name(), "kernel": platform.release()},
        "boot_id": processes.boot_id(),
        "uptime_s": lease.now_s(),
        "time_s": time.time(),
        "python": {"path": sys.executable, "version": platform.python_version()},
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _memory(),
        "disk": {"free_bytes": disk.f_bavail * disk.f_frsize, "total_bytes": disk.f_blocks * disk.f_frsize},
        "writable": not trial["write"],
        "folder": trial,
        "gpus": found.gpus,
        "driver": found.driver,
        "gpu_trouble": found.said,
        "interpreters": interpreters.candidates(places, python),
        "envs": environments(places),
        "tools": {name: shutil.which(name) is not None for name in TOOLS},
        "systemd": os.path.isdir("/run/systemd/system"),
        "sleep_enabled": _sleep_enabled(),
        "after_reboot": boot_hook.way(),
        "addresses": interfaces.addresses(),
        "runs": files.listing(places.runs),
        "locks": locks.held([*glob.glob(os.path.join(locks.FOLDER, "*.lock")), os.path.join(places.agent, "cpu.lock")]),
    }


def environments(places: Places) -> dict[str, Environment]:
    """HASH -> what the install job found for it, as long as its interpreter is still there."""
    found: dict[str, Environment] = {}
    for path in glob.glob(os.path.join(places.envs, "*.json")):
        record = files.read_json(path)
        if record and os.access(str(record.get("python")), os.X_OK):
            found[os.path.basename(path)[: -len(".json")]] = cast("Environment", record)
    return found


def _os_name() -> str:
    """PRETTY_NAME of the image; empty where nothing tells."""
    try:
        with open("/etc/os-release") as file:
            names = [line.partition("=")[2].strip().strip('"') for line in file if line.startswith("PRETTY_NAME=")]
    except OSError:
        return ""
    return names[0] if names else ""


def _memory() -> Memory:
    sizes: dict[str, int] = {}
    with open("/proc/meminfo") as file:
        for line in file:
            name, _, rest = line.partition(":")
            sizes[name] = int(rest.split()[0]) * 1024
    return {"total_bytes": sizes.get("MemTotal"), "available_bytes": sizes.get("MemAvailable")}


def _sleep_enabled() -> bool | None:
    """Whether systemd would let this machine sleep; None where nothing tells. Masked targets are links to /dev/null."""
    if not os.path.isdir("/run/systemd/system"):
        return None
    targets = [os.path.join("/etc/systemd/system", name) for name in ("sleep.target", "suspend.target")]
    return not any(os.path.realpath(target) == os.devnull for target in targets)

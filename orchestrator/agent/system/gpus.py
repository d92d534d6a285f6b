"""The machine's GPUs as nvidia-smi shows them. Empty where there is none; never guesses.

Example::

    read_gpus()      # ([{'index': 0, 'uuid': 'GPU-...', 'name': 'NVIDIA H100', ...}], '570.86.15')
"""

from __future__ import annotations

import os
import subprocess
from typing import Sequence

from ..contract.facts import Gpu
from ..contract.names import Code
from . import processes
from .refusal import Refusal

DEADLINE_S = 30.0
GPU_FIELDS = "index,uuid,name,memory.total,memory.used,driver_version"
PROCESS_FIELDS = "gpu_uuid,pid,process_name,used_memory"


def read_gpus() -> tuple[list[Gpu], str | None]:
    """Every GPU with the processes that compute on it, and the driver's version."""
    rows = _query("--query-gpu=" + GPU_FIELDS)
    if not rows:
        return [], None
    working = _query("--query-compute-apps=" + PROCESS_FIELDS)
    return [_gpu(row, working) for row in rows if len(row) == 6], rows[0][-1]


def _gpu(row: list[str], working: list[list[str]]) -> Gpu:
    mine = [other for other in working if len(other) == 4 and other[0] == row[1]]
    return {
        "index": _number(row[0]),
        "uuid": row[1],
        "name": row[2],
        "memory_total_mib": _number(row[3]),
        "memory_used_mib": _number(row[4]),
        "processes": [{"pid": _number(pid), "name": name, "memory_mib": _number(used)} for _, pid, name, used in mine],
    }


def _query(question: str) -> list[list[str]]:
    """Rows of nvidia-smi's CSV; empty when it is missing or fails (no driver, no GPU)."""
    try:
        done = subprocess.run(
            ["nvidia-smi", question, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    lines = done.stdout.decode(errors="replace").splitlines()
    return [[field.strip() for field in line.split(",")] for line in lines if line.strip()]


def _number(text: str) -> int | None:
    """nvidia-smi says [N/A] where it cannot tell."""
    return int(text) if text.isdigit() else None


def refuse_busy(uuids: Sequence[str]) -> None:
    """Raises Refusal `gpus-busy`, naming the processes of others that compute on these GPUs."""
    working = [row for row in _query("--query-compute-apps=" + PROCESS_FIELDS) if len(row) == 4 and row[0] in uuids]
    if not working:
        return
    named = ["%s (pid %s%s) on %s" % (name, pid, _owner(pid), uuid) for uuid, pid, name, _ in working]
    raise Refusal(
        Code.GPUS_BUSY, "others compute on these GPUs: " + ", ".join(named), "end those processes, or wait for them"
    )


def _owner(pid: str) -> str:
    try:
        return ", user %s" % processes.user_name(os.stat("/proc/%s" % pid).st_uid)
    except OSError:
        return ""

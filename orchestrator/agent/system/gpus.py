"""The machine's GPUs as nvidia-smi shows them, and what it says where it shows none. Never guesses.

Example::

    look()      # Look([{'index': 0, 'uuid': 'GPU-...', 'name': 'NVIDIA H100', ...}], '570.86.15', '')
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from typing import NamedTuple, Sequence

from ..contract.facts import Gpu
from ..contract.names import Code
from . import processes
from .refusal import Refusal

DEADLINE_S = 30.0
GPU_FIELDS = "index,uuid,name,memory.total,memory.used,driver_version,mig.mode.current"
PROCESS_FIELDS = "gpu_uuid,pid,process_name,used_memory"
PLACES = ("/usr/bin", "/usr/lib/wsl/lib", "/usr/local/nvidia/bin", "/run/current-system/sw/bin")
"""Where nvidia-smi is when PATH does not have it: WSL2, containers and NixOS put it there."""
BROKEN = ("lost", "err!", "unknown error")
"""What nvidia-smi puts in the fields of a card that does not answer."""
NVIDIA = "0x10de"


class Look(NamedTuple):
    """`said`: nvidia-smi's own words where it fails or names a card that is lost; empty where all is well."""

    gpus: list[Gpu]
    driver: str | None
    said: str


def read_gpus() -> tuple[list[Gpu], str | None]:
    """Every GPU that answers, with the processes that compute on it, and the driver's version."""
    found = look()
    return found.gpus, found.driver


def look() -> Look:
    """Every GPU that answers, and what nvidia-smi says of the others."""
    rows, said = _ask("--query-gpu=" + GPU_FIELDS)
    cards = [row for row in rows if len(row) in (6, 7) and row[0].isdigit()]
    said += [", ".join(row) for row in rows if row not in cards]
    lost = [row for row in cards if any(word in field.lower() for word in BROKEN for field in row)]
    said += ["GPU %s is lost: %s" % (row[0], ", ".join(row[1:])) for row in lost]
    good = [row for row in cards if row not in lost]
    working = _ask("--query-compute-apps=" + PROCESS_FIELDS)[0] if good else []
    return Look([_gpu(row, working) for row in good], good[0][5] if good else None, " | ".join(said)[:500])


def capabilities(uuids: Sequence[str]) -> list[tuple[int, int]]:
    """Compute capabilities of these cards, or of all; empty where nvidia-smi does not tell."""
    rows = [row for row in _query("--query-gpu=uuid,compute_cap") if len(row) == 2 and (not uuids or row[0] in uuids)]
    numbers = [row[1].partition(".") for row in rows]
    return [(int(major), int(minor)) for major, _, minor in numbers if major.isdigit() and minor.isdigit()]


def _gpu(row: list[str], working: list[list[str]]) -> Gpu:
    mine = [other for other in working if len(other) == 4 and other[0] == row[1]]
    return {
        "index": _number(row[0]),
        "uuid": row[1],
        "name": row[2],
        "memory_total_mib": _number(row[3]),
        "memory_used_mib": _number(row[4]),
        "mig": row[6:] == ["Enabled"],
        "processes": [{"pid": _number(pid), "name": name, "memory_mib": _number(used)} for _, pid, name, used in mine],
    }


def _ask(question: str) -> tuple[list[list[str]], list[str]]:
    """Rows of nvidia-smi's CSV, and its complaint where it is missing, hangs or fails."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=os.pathsep.join(PLACES))
    if program is None:
        return [], ["an NVIDIA card is on the PCI bus, and nvidia-smi is not installed"] if _on_the_bus() else []
    try:
        done = subprocess.run(
            [program, question, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
    except OSError as error:
        return [], ["%s: %s" % (program, error.strerror)]
    except subprocess.TimeoutExpired:
        return [], ["nvidia-smi gave no answer within %d s" % DEADLINE_S]
    lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode != 0:
        errors = done.stderr.decode(errors="replace").splitlines()
        return [], [line.strip() for line in lines + errors if line.strip()] or ["code %d" % done.returncode]
    return [[field.strip() for field in line.split(",")] for line in lines], []


def _query(question: str) -> list[list[str]]:
    """Rows of nvidia-smi's CSV; empty when it is missing or fails (no driver, no GPU)."""
    return _ask(question)[0]


def _on_the_bus() -> bool:
    for path in glob.glob("/sys/bus/pci/devices/*/vendor"):
        try:
            with open(path) as file:
                vendor = file.read().strip()
            with open(os.path.join(os.path.dirname(path), "class")) as file:
                is_display = file.read().startswith("0x03")
        except OSError:
            continue
        if vendor == NVIDIA and is_display:
            return True
    return False


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

"""Machines: switch one on, check it, cut its SSH sessions, end its processes. Knows neither the API nor the bill.

Example::

    power_on(disk)                    # a real sshd answers at disk.address, port disk.port
    destroy(disk)                     # ends every process of it and removes its folder
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.rehearsal.machines import processes
from orchestrator.rehearsal.machines.disk import HALTED, POWERED_OFF, Disk, log

UP_WITHIN_S = 15.0
PACKAGE_ROOT = Path(__file__).resolve().parents[3]


class BootFailed(Exception):
    """sshd did not start; the message has its log."""


def power_on(disk: Disk) -> None:
    """Starts the first process if it does not run, and waits until sshd accepts connections. Raises BootFailed."""
    if is_on(disk) and answers(disk):
        return
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # a root sshd requires its "privilege separation directory"
    variables = {**disk.variables(), "PYTHONPATH": str(PACKAGE_ROOT)}
    with (disk.folder / "console.log").open("ab") as console:
        process = subprocess.Popen(
            [sys.executable, "-S", "-m", "orchestrator.rehearsal.machines.first_process", str(disk.folder)],
            env=variables, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            cwd=disk.home,
        )  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie when it ends
    until = time.monotonic() + UP_WITHIN_S
    while not answers(disk):
        if time.monotonic() > until or process.returncode is not None:
            raise BootFailed(f"sshd at {disk.address}:{disk.port} did not start: {_last_words(disk)}")
        time.sleep(0.02)


def answers(disk: Disk) -> bool:
    """Whether the machine's address accepts connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((disk.address, disk.port)) == 0


def first_process(disk: Disk) -> processes.Identity | None:
    """The machine's first process, by its pid file and its mark; None when the machine is off."""
    try:
        pid = int((disk.folder / "first_process.pid").read_text())
    except (OSError, ValueError):
        return None
    return processes.identity(pid) if pid in processes.marked(disk.mark) else None


def is_on(disk: Disk) -> bool:
    return first_process(disk) is not None


def was_shut_down(disk: Disk) -> bool:
    """Whether its operating system was shut down from inside."""
    return (disk.folder / POWERED_OFF).exists()


def is_powered_off(disk: Disk) -> bool:
    """Whether its power is off; `halt` only stops the system."""
    return was_shut_down(disk) and not (disk.folder / HALTED).exists()


def kill(disk: Disk) -> None:
    """Ends every process of the machine, detached ones included; the disk stays. Raises TimeoutError."""
    processes.kill_all(first_process(disk), disk.mark)


def destroy(disk: Disk) -> None:
    """Ends every process and removes disk and memory. Repeatable."""
    kill(disk)
    shutil.rmtree(disk.memory, ignore_errors=True)
    shutil.rmtree(disk.folder, ignore_errors=True)


def sessions(disk: Disk) -> list[int]:
    """The sshd processes of established connections."""
    first = first_process(disk)
    found = processes.below(first.pid) if first else []
    return [pid for pid in found if processes.name(pid).startswith("sshd") and pid != _listener(disk)]


def drop_sessions(disk: Disk) -> None:
    """Kills every established SSH session; sshd and detached processes keep running."""
    for pid in sessions(disk):
        processes.send(pid, signal.SIGKILL)


def reboot(disk: Disk) -> None:
    """Does what `reboot` on the machine does: ends every process, starts sshd again, keeps the disk."""
    first = first_process(disk)
    if first:
        processes.send(first.pid, signal.SIGUSR1)


def freeze(disk: Disk) -> None:
    """Stops every process: its address accepts connections and never answers."""
    first = first_process(disk)
    for pid in [*processes.below(first.pid), first.pid] if first else []:
        processes.send(pid, signal.SIGSTOP)


def metric_files(disk: Disk) -> Iterator[Path]:
    """metrics.jsonl of every run folder on the machine, wherever gptctl's folder is in its home."""
    for pattern in ("runs/*/metrics.jsonl", "*/runs/*/metrics.jsonl", "*/*/runs/*/metrics.jsonl"):
        yield from disk.home.glob(pattern)


def _listener(disk: Disk) -> int:
    try:
        return int((disk.folder / "sshd.pid").read_text())
    except (OSError, ValueError):
        return 0


def _last_words(disk: Disk) -> str:
    found = [disk.folder / name for name in ("sshd.log", "console.log")]
    words = " ".join(file.read_text()[-400:] for file in found if file.exists())
    log(disk, "boot failed")
    return words.strip() or "no log"

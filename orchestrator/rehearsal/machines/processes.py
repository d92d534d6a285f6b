"""Processes of a machine as /proc shows them, and how to end all of them. Knows nothing of clouds.

Example: `kill_all(first_process, mark=b"HOME=/state/machines/ab12/home")`
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

SWEEP_PAUSE_S = 0.01
GIVE_UP_S = 20.0


@dataclass(frozen=True)
class Identity:
    """A process, told apart from a later one with the same pid by its start time in clock ticks since boot."""

    pid: int
    start_ticks: int


def identity(pid: int) -> Identity | None:
    """None when there is no such process, or only its zombie."""
    fields = _stat(pid)
    return Identity(pid, int(fields[19])) if len(fields) > 19 and fields[0] not in "ZX" else None


def is_alive(known: Identity) -> bool:
    return identity(known.pid) == known


def below(root: int) -> list[int]:
    """Every living process below this one. With a subreaper at the root, setsid and double forks do not hide one."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        fields = _stat(pid)
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(pid)
    found, todo = [], [root]
    while todo:
        next_ones = children.get(todo.pop(), [])
        found += next_ones
        todo += next_ones
    return [pid for pid in found if identity(pid)]


def marked(mark: bytes) -> list[int]:
    """Every living process whose environment has exactly this `NAME=value`."""
    return [pid for pid in _pids() if mark in _read(pid, "environ").split(b"\0") and identity(pid)]


def name(pid: int) -> str:
    return _read(pid, "comm").decode(errors="replace").strip()


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def kill_all(first: Identity | None, mark: bytes) -> None:
    """Ends everything: what is below the first process, what carries the mark, the first process last.

    The first process is stopped before, so that it starts nothing new, and ended last: until then it inherits every
    orphan, and nothing can hide. Raises TimeoutError when something cannot be killed.
    """
    root = first.pid if first and is_alive(first) else None
    if root:
        send(root, signal.SIGSTOP)
    until = time.monotonic() + GIVE_UP_S
    while found := {*marked(mark), *(below(root) if root else [])} - {root, os.getpid()}:
        if time.monotonic() > until:
            raise TimeoutError(f"processes {sorted(found)} do not end")
        for pid in found:
            send(pid, signal.SIGKILL)
        time.sleep(SWEEP_PAUSE_S)
    if root:
        send(root, signal.SIGKILL)
        while identity(root) and time.monotonic() < until:
            time.sleep(SWEEP_PAUSE_S)


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _stat(pid: int) -> list[str]:
    """Fields from `state` on; the name before it may hold spaces and brackets of its own."""
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _read(pid: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:  # it ended meanwhile, or is another user's
        return b""

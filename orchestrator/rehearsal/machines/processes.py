"""Finds the processes of a machine in /proc and ends all of them. Knows no cloud.

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
    """A process; its start time (clock ticks since boot) tells it from a later one with the same pid."""

    pid: int
    start_ticks: int


def identity(pid: int) -> Identity | None:
    """The identity of a process; None when it does not exist or is a zombie."""
    fields = _stat(pid)
    return Identity(pid, int(fields[19])) if len(fields) > 19 and fields[0] not in "ZX" else None


def is_alive(known: Identity) -> bool:
    return identity(known.pid) == known


def below(root: int) -> list[int]:
    """Every living process below this one. Under a subreaper, neither setsid nor double forks hide any."""
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
    """Sends a signal; fine if the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def kill_all(first: Identity | None, mark: bytes) -> None:
    """Ends every process below the first one or with the mark, and the first one last.

    Stops the first process before, so that it starts nothing new; it inherits every orphan until it ends. Raises
    TimeoutError when a process survives.
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
    """Fields from `state` on; the name before it can contain spaces and brackets."""
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _read(pid: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:  # it has ended, or belongs to another user
        return b""

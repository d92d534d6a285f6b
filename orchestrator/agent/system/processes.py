"""Processes as /proc shows them. A pid alone proves nothing: pids come again, zombies answer signals, machines reboot.

Every program of a job carries GPTCTL_JOB=FOLDER in its environment, and children inherit it; its supervisor does not.
So the processes of a job can be found at any time, by anybody, even when the process that started them was killed
before it could write a line.

Example::

    me = identity(os.getpid())       # {'pid': 12, 'start_ticks': 3456, 'boot_id': '...'}
    is_alive(me)                     # True
"""

from __future__ import annotations

import os
import pwd
import signal
import time
from typing import Iterable, TypedDict


class Identity(TypedDict):
    """What names a process for ever."""

    pid: int
    start_ticks: int
    boot_id: str


JOB_VARIABLE = "GPTCTL_JOB"
ZOMBIE_STATES = "ZX"


def boot_id() -> str:
    """Changes with every boot; empty where the kernel hides it (then pid and start time decide)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def user_name(uid: int | None = None) -> str:
    """The name of that user, by default of this one; the number where it has none."""
    try:
        return pwd.getpwuid(os.getuid() if uid is None else uid).pw_name
    except KeyError:
        return str(uid)


def stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from `state` on (state, ppid, ...); None when the process is gone."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            content = file.read().decode(errors="replace")
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets of its own: count from the last one.
    return content[content.rindex(")") + 2 :].split()


def identity(pid: int) -> Identity | None:
    """What names this process for ever: pid, start time in clock ticks since boot, boot id. None when it is gone."""
    fields = stat_fields(pid)
    if fields is None or fields[0] in ZOMBIE_STATES:
        return None
    return {"pid": pid, "start_ticks": int(fields[19]), "boot_id": boot_id()}


def is_alive(known: Identity | None) -> bool:
    """Whether exactly this process still runs: same pid, same start, same boot, not a zombie."""
    return known is not None and "pid" in known and known == identity(known["pid"])


def names() -> set[str]:
    """The names of all programs that run here, as /proc/PID/comm has them: at most 15 characters."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/comm" % pid) as file:
                found.add(file.read().strip())
        except OSError:
            continue
    return found


def parent(pid: int) -> int:
    fields = stat_fields(pid)
    return int(fields[1]) if fields else 0


def environment(pid: int) -> dict[str, str]:
    """The environment the process was started with; empty when it is gone or another user's."""
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            content = file.read().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in content.split("\0") if "=" in item)


def of_job(folder: str) -> list[int]:
    """Living processes of the job, oldest first, without the caller itself."""
    found = []
    for name in os.listdir("/proc"):
        pid = int(name) if name.isdigit() else 0
        if pid and pid != os.getpid() and environment(pid).get(JOB_VARIABLE) == folder:
            fields = stat_fields(pid)
            if fields and fields[0] not in ZOMBIE_STATES:
                found.append((int(fields[19]), pid))
    return [pid for _, pid in sorted(found)]


def ranks(folder: str) -> list[int]:
    """The training ranks of the job: they have a LOCAL_RANK, and their parent (torchrun, the supervisor) has none.

    A rank's own children (data workers, compilers) inherit the variable; they are the rank's business.
    """
    marked = {pid: "LOCAL_RANK" in environment(pid) for pid in of_job(folder)}
    return [pid for pid, has_rank in marked.items() if has_rank and not marked.get(parent(pid), False)]


def send(pids: Iterable[int], number: int) -> None:
    """Signals those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def kill_all(folder: str, deadline_s: float = 10.0) -> bool:
    """SIGKILL to whatever the job left behind; whether all of it is gone: an uninterruptible wait holds on."""
    ends = time.monotonic() + deadline_s
    while True:
        left = of_job(folder)
        if not left or time.monotonic() > ends:
            return not left
        send(left, signal.SIGKILL)
        time.sleep(0.05)

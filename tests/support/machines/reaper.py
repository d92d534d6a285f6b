"""Ends daemons that a test started, once that test is gone, however it ended: a test that is killed runs no teardown,
and daemons have left its tree of processes.

    with reaper("SLURM_CONF=/dev/shm/x/slurm.conf", Path("/dev/shm/x")):     # they have this in their environment
        ...                                                                  # then, or killed here: none of them lives
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REAPS_WITHIN_S = 120.0


@contextmanager
def reaper(mark: str, folder: Path) -> Iterator[None]:
    """With the block's end, or this process's, all that has `mark` (NAME=VALUE) in its environment is killed, whatever
    it started too, and `folder` is removed."""
    argv = [sys.executable, __file__, mark, str(folder)]
    # The pipe's other end is ours alone: it closes with this process.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(REAPS_WITHIN_S)


def marked(mark: str) -> set[int]:
    """Who has it in the environment and lives, and all that those started."""
    parents = {int(name): _parent(name) for name in os.listdir("/proc") if name.isdigit()}
    found = {pid for pid, parent in parents.items() if parent is not None and mark.encode() in _environment(pid)}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it ended meanwhile
        return []


def _parent(pid: str) -> int | None:
    """None: it has ended."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


def _reap(mark: str, folder: Path) -> None:
    while found := marked(mark):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _reap(sys.argv[1], Path(sys.argv[2]))

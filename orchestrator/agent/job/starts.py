"""How a job is started: one starter at a time, and a further attempt of a training on the same machine, which follows
with other ranks where a node was lost.

Example: `put_aside(before)`      # exit-1.json; the next order of the training finds the folder as if it were new
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

from trainer import run_files

from ..contract.names import Code, FileName
from ..system import files
from ..system.refusal import Refusal

if TYPE_CHECKING:
    from .jobs import Job

LOCK_DEADLINE_S = 45.0
LEFT = (
    FileName.STOP, FileName.STARTS, FileName.STATE, FileName.ERROR, FileName.DEATHS, FileName.STARTED_FROM,
    FileName.HOLDING,
)  # fmt: skip
"""In its job's folder, beside exit.json."""


def number(job: Job) -> int:
    """Which order of the run's training this is, from 1."""
    return int(job.spec.get("attempt") or 1)


def put_aside(before: Job) -> None:
    """What a training that has ended left. Its exit goes last: a start that is killed before finds it ended."""
    files.remove(os.path.join(before.run_folder, run_files.EXIT))
    for name in LEFT:
        files.remove(before.file(name))
    os.replace(before.file(FileName.EXIT), before.file("exit-%d.json" % number(before)))


def locked(job: Job) -> int:
    """A descriptor that holds the job's start lock: of two starters at once the second sees what the first did."""
    descriptor = os.open(job.file(FileName.START_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ends = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > ends:
                os.close(descriptor)
                raise Refusal(Code.START_BUSY, "another start of %s %s does not end" % (job.run, job.name)) from None
            time.sleep(0.05)

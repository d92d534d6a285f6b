"""Keeps the machine awake while a training runs on it, where systemd-inhibit is there and this user may use it.

The lock belongs to a process that waits for the end of a pipe. The supervisor and the training hold the other end, so
the machine may sleep again as soon as neither lives, however they ended.

Example::

    held += keep_awake(job)      # one descriptor, or none
"""

from __future__ import annotations

import os
import subprocess

from ..jobs import Job

SYSTEMD_RUNS = "/run/systemd/system"
HOLD = """
for what in sleep:idle idle; do
    systemd-inhibit --what=$what --who=gptctl --why="training $1" --mode=block cat && exit
done
"""
"""The second one is allowed to every login; the first is not, over SSH."""


def keep_awake(job: Job) -> list[int]:
    """A descriptor that keeps the machine awake as long as anybody has it open; empty where nothing is to."""
    if not job.spec.get("keep_awake") or not os.path.isdir(SYSTEMD_RUNS):
        return []
    reading, writing = os.pipe()
    try:
        subprocess.Popen(
            ["sh", "-c", HOLD, "sh", job.run],
            stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(reading)
    return [writing]

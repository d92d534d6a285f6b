"""What the agent on a node of a job asks scontrol, and has it do. A controller that is busy or away for a while is
asked again. It must not decide anything.

Example: `told(job_id()).get("JobState")      # "RUNNING"`
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import Mapping

from .contract.names import SLURM_IS_SILENT

SILENT_FOR_S, ASK_EVERY_S = 120.0, 5.0
"""How long a controller that is silent is asked again: that it is busy decides nothing."""
Told = Mapping[str, str]
"""What `scontrol show job` says: JobState, Restarts, PreemptTime and so on."""


def job_id() -> str:
    """As scontrol takes it. The number alone of a sweep's last element means all elements."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return "%s_%s" % (array, element) if array and element else os.environ.get("SLURM_JOB_ID", "")


def restart() -> int:
    """How often this job was requeued before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def told(job_id: str) -> Told:
    """What Slurm says of a job now; empty where it says nothing."""
    asked = ["scontrol", "show", "job", job_id]
    try:
        done = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(re.findall(r"(\w+)=(\S*)", done.stdout.decode(errors="replace")))


def told_at_last() -> Told:
    """What Slurm says of this job, after at most SILENT_FOR_S without a word."""
    until_s = time.monotonic() + SILENT_FOR_S
    while not (said := told(job_id())) and time.monotonic() < until_s:
        time.sleep(ASK_EVERY_S)
    return said


def order(*words: str) -> bool:
    """Has scontrol do something, as often as a silent controller needs within SILENT_FOR_S. Whether it was done."""
    until_s = time.monotonic() + SILENT_FOR_S
    while True:
        done = subprocess.run(["scontrol", *words], stderr=subprocess.PIPE, check=False)
        if done.returncode == 0:
            return True
        said = done.stderr.decode(errors="replace").strip()
        sys.stdout.write("gptctl: scontrol %s: %s\n" % (words[0], said))
        if not re.search(SLURM_IS_SILENT, said, re.IGNORECASE) or time.monotonic() > until_s:
            return False
        time.sleep(ASK_EVERY_S)


def has_restarted(said: Told) -> bool:
    """Whether Slurm has ordered the next start already."""
    return int(said.get("Restarts") or restart()) > restart()

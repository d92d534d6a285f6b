"""What becomes of a Slurm job whose start is over, and how long its starts took: by values, without asking Slurm.

Example: `trained_s([{"event": "begin", "time": 10.0}, {"event": "end", "time": 40.0}])      # 30.0`
"""

from __future__ import annotations

import math
import re
from typing import Mapping, Sequence, cast

from trainer import run_files


def limit_s(text: str) -> float:
    """Seconds of a time limit as scontrol prints it, `1-04:00:00`; infinite for UNLIMITED and whatever else it says."""
    found = re.match(r"(?:(\d+)-)?(\d+):(\d+):(\d+)$", text)
    if found is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def trained_s(lines: Sequence[Mapping[str, object]]) -> float:
    """Seconds of all starts, each up to the last line that it wrote: one that was killed wrote no end."""
    total = began = last = 0.0
    for line in lines:
        at = max(last, cast("float", line["time"]))  # the clocks of two nodes may differ
        if line.get("event") == "begin" or not last:
            total, began = total + last - began, at
        last = at
    return total + last - began


RETURNS, REQUEUE, ENDED, CANCELLED = "Slurm starts it again", "requeue", "ended", "cancelled"


def what_next(outcome: object, again: str, *, restarted: bool, asked: bool, why: str) -> str:
    """The verdict on a start that is over: RETURNS, REQUEUE, CANCELLED, ENDED, or why it is not requeued.

    outcome: the trainer's. again: what _stop_to_continue left. restarted: Slurm has already ordered the next start:
    requeued by others, preempted without a grace, or a node failed. asked: you asked for the end. why: what speaks
    against another start.
    """
    if outcome == run_files.OUTCOME_FINISHED or asked:
        return ENDED
    if restarted:
        return RETURNS
    if outcome != run_files.OUTCOME_STOPPED:
        return ENDED
    return (why or REQUEUE) if again else CANCELLED

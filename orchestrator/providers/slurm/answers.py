"""What Slurm's commands print, as values. Text with named fields only: the form of --json differs by version.

It must not run anything.

Example: `view("17|PENDING|Resources|1764500000|")`
"""

from __future__ import annotations

import re

from orchestrator.core.engine import JobView, Phase, Span

VIEW_FIELDS = "%i|%T|%r|%S|%N"
"""Of squeue: id, state, reason, start, nodes. %r and %N may be empty."""
SPAN_FIELDS = "JobID,State,ElapsedRaw,NNodes,AllocTRES,Start,Reason"

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
RUNNING = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
"""Every other state of a job is an end."""

REASONS = {
    "JobHeldUser": "it is held; `scontrol release {job}` on the login node lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "PartitionConfig": "no node of the partition can ever do this: check nodes, machine and partition",
    "PartitionTimeLimit": "it asks for more time than the partition allows: lower `time`",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "AssociationJobLimit": "your account runs as many jobs as it may",
    "DependencyNeverSatisfied": "what it waits for can never happen",
}
"""What some of Slurm's reasons mean, where its word alone does not say what to do."""


def phase(state: str) -> Phase:
    """Where a job in this state is. `CANCELLED by 1000` and `CANCELLED+` are CANCELLED."""
    word = plain(state)
    return Phase.WAITING if word in WAITING else Phase.RUNNING if word in RUNNING else Phase.ENDED


def plain(state: str) -> str:
    """The state's one word."""
    return (state.split() or [""])[0].rstrip("+").upper()


def view(line: str) -> JobView:
    """A line of squeue in VIEW_FIELDS, with times in UTC epoch seconds."""
    job, state, reason, start, nodes = (*line.split("|"), "", "", "", "")[:5]
    told = "" if reason in ("None", "(null)") else reason
    return JobView(job, phase(state), plain(state), told, _time(start), nodes)


def from_books(line: str) -> JobView:
    """A line of sacct in SPAN_FIELDS: a job that squeue has forgotten. Its reason is who cancelled it."""
    job, state, *_ = line.split("|")
    return JobView(job, phase(state), plain(state), " ".join(state.split()[1:]))


def span(line: str) -> Span:
    """A line of sacct in SPAN_FIELDS, one for each start of a job."""
    _, state, elapsed, nodes, tres, *_ = line.split("|")
    gpus = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
    return Span(plain(state), _number(elapsed), int(_number(nodes)), int(gpus[1]) if gpus else 0)


def words(found: JobView) -> str:
    """Why a job waits, with what to do about it: `Resources`, `JobHeldUser: it is held; ...`."""
    known = REASONS.get(found.reason)
    return f"{found.reason}: {known.format(job=found.id)}" if known else found.reason


def _time(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _number(text: str) -> float:
    return float(text) if text.strip().isdigit() else 0.0

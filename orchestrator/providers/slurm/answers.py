"""What Slurm's commands print, as values. Text with named fields only: the form of --json differs by version.

It must not run anything.

Example: `view("17|PENDING|Resources|1764500000|")`
"""

from __future__ import annotations

import re

from orchestrator.core.engine import JobView, Phase, Span
from orchestrator.core.errors import NoAnswer

VIEW_FIELDS = "%i|%T|%r|%S|%N"
"""Of squeue: id, state, reason, start, nodes. %r and %N may be empty."""
SPAN_FIELDS = "JobID,State,ElapsedRaw,NNodes,AllocTRES,Start,Reason"

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
RUNNING = frozenset(
    {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
ENDED = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT",
    }
)  # fmt: skip
"""A word that is in none of these, or a torn line, ends nothing: the job may train."""
SPAN_ENDED = ENDED | {"REQUEUED"}
"""Of one start, in the books."""
PHASES = {
    word: phase
    for phase, words in ((Phase.WAITING, WAITING), (Phase.RUNNING, RUNNING), (Phase.ENDED, ENDED))
    for word in words
}
MOST_CHARACTERS = 200
"""Of a field: it goes into the ledger and on the screen."""

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
    """Where a job in this state is. `CANCELLED by 1000` and `CANCELLED+` are CANCELLED. Raises NoAnswer for a word that
    is not one of Slurm's."""
    try:
        return PHASES[plain(state)]
    except KeyError:
        raise NoAnswer(
            f"Slurm calls a job {state[:MOST_CHARACTERS]!r}, which says nothing", "look there: squeue"
        ) from None


def plain(state: str) -> str:
    """The state's one word."""
    return (state.split() or [""])[0].rstrip("+").upper()


def view(line: str) -> JobView:
    """A line of squeue in VIEW_FIELDS, with times in UTC epoch seconds."""
    fields = [field[:MOST_CHARACTERS] for field in line.split("|")]
    job, state, reason, start, nodes = (*fields, "", "", "", "")[:5]
    told = "" if reason in ("None", "(null)") else reason
    return JobView(job, phase(state), plain(state), told, _time(start), nodes)


def from_books(line: str) -> JobView:
    """A line of sacct in SPAN_FIELDS: a job that squeue has forgotten. Its reason is who cancelled it."""
    job, state, *_ = (field[:MOST_CHARACTERS] for field in line.split("|"))
    return JobView(job, phase(state), plain(state), " ".join(state.split()[1:]))


def span(line: str) -> Span:
    """A line of sacct in SPAN_FIELDS, one for each start of a job."""
    _, state, elapsed, nodes, tres, *_ = line.split("|")
    gpus = re.findall(r"(?:^|,)gres/gpu=([0-9]+)", tres) or re.findall(r"(?:^|,)gres/gpu:[^,=]+=([0-9]+)", tres)
    return Span(
        plain(state), number(elapsed), int(number(nodes)), int(sum(map(number, gpus))),
        is_over=plain(state) in SPAN_ENDED,
    )  # fmt: skip


def words(found: JobView) -> str:
    """Why a job waits, with what to do about it: `Resources`, `JobHeldUser: it is held; ...`."""
    known = REASONS.get(found.reason)
    return f"{found.reason}: {known.format(job=found.id)}" if known else found.reason


def _time(text: str) -> float | None:
    """Of squeue with SLURM_TIME_FORMAT=%s; None for N/A."""
    return number(text) or None


def number(text: str) -> float:
    """A count of nodes, seconds, cards; 0 for anything else, such as `N/A` or more digits than can be meant."""
    return float(text) if re.fullmatch(r"[0-9]{1,11}", text.strip()) else 0.0

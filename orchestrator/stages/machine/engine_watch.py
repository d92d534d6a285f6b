"""What is made of a job of an engine that ended: its own record where there is one; else another job of the same run,
the job submitted again, or a verdict in the engine's words.

Example: `Watch(context).look()`      # None while it waits or trains
"""

from __future__ import annotations

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.core.engine import JobView, Phase
from orchestrator.core.errors import MachineUnfit, NoAnswer
from orchestrator.core.planning.limits import train_deadline_s
from orchestrator.core.states import Outcome, State
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.engine_job import (
    ELEMENT,
    engine_of,
    every_job,
    follow_another,
    keep,
    look,
    order,
    submitted,
    write_exit,
)

LOOK_EVERY_S = 10.0
"""One follower's load on the controller; the training's own files are read all the time."""
SETTLES_S = 20.0
"""After the engine called a job ended, the last words of its script may still be on their way through the file
system."""
LAST_CHARACTERS = 300
LEAST_S = 60.0
"""The time of a job is in whole minutes: with less than one left a run has no more."""
MOST_JOBS = 10
"""So often one run is submitted where the engine drops a job in place of requeuing it."""
TAKEN = ("PREEMPTED", "NODE_FAIL", "BOOT_FAIL")
OUT_OF_TIME = "TIMEOUT"
DROPPED = frozenset({*TAKEN, OUT_OF_TIME})
"""How a job ends that its script could not requeue: everything was killed at once."""
FINAL = {
    "COMPLETED": Outcome.FAILED, "CANCELLED": Outcome.STOPPED, OUT_OF_TIME: Outcome.LIMIT, "DEADLINE": Outcome.LIMIT,
    **dict.fromkeys(TAKEN, Outcome.PREEMPTED),
}  # fmt: skip
"""The outcome of a run whose job ended without a record of its own; every other state is `failed`."""


class Watch:
    """Looks at the job now and then while its files are followed."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.looked_at = self.ended_at = float("-inf")
        self.is_silent = False

    def look(self) -> ExitRecord | None:
        """How the job ended, where the engine says so and its script did not; else None."""
        context = self.context
        if context.engine is None or not context.facts.engine.jobs:
            return None
        if context.now() - self.looked_at < LOOK_EVERY_S:
            return None
        self.looked_at = context.now()
        try:
            found = look(context)
            record = _conclude(context, found) if self._has_ended(found) else None
        except (NoAnswer, MachineUnfit) as error:  # the login node without its Slurm for a while
            if not self.is_silent:
                context.emit("seen", f"{error.message}; the job does not need this answer")
            self.is_silent = True
            return None
        self.is_silent = False
        return record

    def _has_ended(self, found: JobView | None) -> bool:
        """Whether the engine has said so for a while."""
        if found is not None and found.phase is not Phase.ENDED:
            self.ended_at = float("-inf")
            return False
        if self.ended_at == float("-inf"):
            self.ended_at = self.context.now()
        return self.context.now() - self.ended_at >= SETTLES_S


def _conclude(context: RunContext, found: JobView | None) -> ExitRecord | None:
    """The job ended and left no record: follows another job of this run, submits it again where the engine dropped it,
    or writes the record."""
    if follow_another(context):
        return None
    jobs = list(context.facts.engine.jobs)
    if found is not None and found.state in DROPPED and len(jobs) < MOST_JOBS and _goes_on(context, found):
        jobs.append(submitted(context, order(context, None)))  # its script reads what the limits leave
        context.emit("warning", f"job {found.id} is {found.state} and was not requeued: submitted again as {jobs[-1]}")
        keep(context, jobs)
        return None
    outcome, reason = _verdict(jobs[-1], found)
    return write_exit(context, outcome, reason + _last_words(context))


def _goes_on(context: RunContext, found: JobView) -> bool:
    """Whether another job is to continue it: not where the time of the whole run is over, beside that of its job."""
    if context.run.state != State.TRAINING:
        return False
    whole_s = train_deadline_s(context.plan) if found.state == OUT_OF_TIME else None
    if whole_s is None:
        return True
    spans = engine_of(context).usage(every_job(context)) or ()
    return sum(span.seconds for span in spans) < whole_s - LEAST_S


def _last_words(context: RunContext) -> str:
    """`: LINE`, the last that the job's script printed: what failed before the training began is said nowhere else."""
    root, element = context.agent.root, context.facts.engine.element
    array, _, number = element.rpartition(ELEMENT)
    log = f"{root}/jobs/{array}-{number}.log" if array else f"{root}/runs/{context.run_id}/slurm.log"
    lines = context.shell.run(["tail", "-n", "1", log]).stdout.decode(errors="replace").strip().splitlines()
    return f": {lines[-1][:LAST_CHARACTERS]}" if lines else ""


def _verdict(job: str, found: JobView | None) -> tuple[Outcome, str]:
    if found is None:
        return Outcome.FAILED, f"Slurm knows nothing of job {job} any more, and it left no record"
    outcome = FINAL.get(found.state, Outcome.FAILED)
    who = f" {found.reason}" if found.reason else ""
    if outcome is Outcome.STOPPED:
        return outcome, f"job {job} was cancelled with scancel{who}"
    return outcome, f"job {job} ended as {found.state}{who} and left no record"

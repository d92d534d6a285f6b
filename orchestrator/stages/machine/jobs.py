"""Jobs of the agent and transfers, as the stages use them. Their progress becomes events and renews the lease.

Example: `transfer.push_file(context.shell, source, destination, progress(context, "data.npy"))`
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.agent.contract.answers import ExitRecord, RunStatus
from orchestrator.agent.contract.names import Code, JobName
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.errors import AgentError
from orchestrator.core.fleet.lease import lease_s
from orchestrator.ledger.records import Attempt
from orchestrator.remote.agent_client.client import Agent, JobState
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline, engine_job
from orchestrator.stages.machine.bounds import hear_stop

PAID_RESTARTS, OWN_RESTARTS = 1, 3


def run_job(context: RunContext, agent: Agent, job: str, digest: str, spec: JobSpec) -> ExitRecord:
    """Starts the job, or attaches to it, and returns its exit record. Raises Stopped, and LinkLost; call it again to
    continue. The agent ends a job that nobody watches and that makes no progress for the time of a lease."""

    def show(progress: dict[str, object]) -> None:
        context.emit("progress", **{"what": job, **progress})
        deadline.extend(context)

    state = start_job(context, agent, job, digest, spec)
    return state.exit or agent.wait(context.run_id, job, show, digest, lambda: _hear_stop(context))


def _hear_stop(context: RunContext) -> None:
    if context.stage is not None:  # `gptctl fetch` of a run that has ended is in none
        hear_stop(context)


def start_job(context: RunContext, agent: Agent, job: str, digest: str, spec: JobSpec) -> JobState:
    """Starts the job, or attaches to it, and does not wait for it."""
    return agent.start(job, context.run_id, digest, {**spec, "lease_s": lease_s()})


def stop_training(context: RunContext) -> None:
    """Ends the run's training with a checkpoint, wherever it is. Repeatable."""
    if context.engine_of is not None:
        engine_job.stop(context)
    else:
        context.agent.stop(context.run_id)


def note_attempt(context: RunContext) -> None:
    """That this run trained: what is not noted is not fetched. Killed between the start and this, gptctl notes it when
    it looks again."""
    if context.attempt is not None:
        return
    number, origin = len(context.ledger.attempts(context.run_id)) + 1, context.facts.resume_from
    from_step = origin.step if origin else 0
    context.ledger.add_attempt(Attempt(context.run_id, number, context.rental.id, context.now(), from_step=from_step))


def machine_status(context: RunContext) -> RunStatus | None:
    """What the machine knows of this run; None where it knows nothing."""
    try:
        status = context.agent.status(context.run_id)
    except AgentError as error:
        if error.code == Code.NO_SUCH_RUN:
            return None
        raise
    return status["runs"][context.run_id]


def restarts(context: RunContext) -> int:
    """How often a training that dies starts again: seldom where every start is paid for."""
    wanted = context.recipe.train.restarts
    return wanted if wanted is not None else (PAID_RESTARTS if context.provider.paid else OWN_RESTARTS)


def has_started(context: RunContext, status: RunStatus | None) -> bool:
    """Whether the machine has the training that is to run now, by what it says: not one of an attempt before."""
    train = None if status is None else status["jobs"].get(JobName.TRAIN)
    return train is not None and train["attempt"] >= context.facts.lost_nodes.attempt


def progress(context: RunContext, what: str) -> Callable[[Transfer], None]:
    """A listener that turns a transfer's counts into progress events."""

    def show(moved: Transfer) -> None:
        _hear_stop(context)
        context.emit(
            "progress",
            what=what,
            done=moved.bytes_done,
            total=moved.bytes_total,
            unit="bytes",
            rate=moved.rate_bytes_per_s,
            eta_s=moved.eta_s,
        )
        deadline.extend(context)

    return show

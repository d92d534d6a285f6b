"""Jobs of the agent, as the stages use them: started once, followed to their end; calling again attaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.agent.contract.names import Code
from orchestrator.core.errors import AgentError
from orchestrator.remote.agent_client.client import Agent, JobState
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import box_guard, deadline


def run_job(context: RunContext, agent: Agent, job: str, digest: str, spec: Mapping[str, Any]) -> ExitRecord:
    """Starts the job, or attaches to it, and returns its exit record. Raises LinkLost; calling again goes on. A job
    that neither progresses nor is watched for the time of a lease is ended."""

    def show(progress: dict[str, Any]) -> None:
        context.emit("progress", **{"what": job, **progress})
        deadline.extend(context)

    state = start_job(context, agent, job, digest, spec)
    return state.exit or agent.wait(context.run_id, job, show, digest)


def start_job(context: RunContext, agent: Agent, job: str, digest: str, spec: Mapping[str, Any]) -> JobState:
    """Starts the job, or attaches to it, and leaves it to itself."""
    return agent.start(job, context.run_id, digest, {**spec, "lease_s": box_guard.lease_s()})


def machine_status(context: RunContext) -> dict[str, Any]:
    """What the machine knows of this run, in whatever state: its `jobs` by name, and the machine's `guard`."""
    try:
        status = context.agent.status(context.run_id)
    except AgentError as error:
        if error.code == Code.NO_SUCH_RUN:
            return {"jobs": {}}
        raise
    return dict(status["runs"][context.run_id])

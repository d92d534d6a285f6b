"""Jobs of the agent, as the stages use them: started once, followed to their end; calling again attaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.errors import AgentError
from orchestrator.remote.agent import Agent
from orchestrator.stages import box_guard, guard
from orchestrator.stages.context import RunContext


def run_job(context: RunContext, agent: Agent, job: str, digest: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Starts the job, or attaches to it, and returns its exit record. Raises LinkLost; calling again goes on. A job
    that neither progresses nor is watched for the time of a lease is ended."""

    def show(progress: dict[str, Any]) -> None:
        context.tell("progress", **{"what": job, **progress})
        guard.extend(context)

    state = agent.start(job, context.run_id, digest, {**spec, "lease_s": box_guard.lease_s()})
    return state.exit or agent.wait(context.run_id, job, show, digest)


def has_job(context: RunContext, job: str) -> bool:
    """Whether the machine knows this job of the run, in whatever state."""
    try:
        status = context.agent.status(context.run_id)
    except AgentError as error:
        if error.code == "no-such-run":
            return False
        raise
    return job in status["runs"][context.run_id]["jobs"]

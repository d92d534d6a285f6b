"""Jobs of the agent, as the stages use them: started once, followed to their end; calling again attaches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.remote.agent import Agent
from orchestrator.stages.context import RunContext

LEASE_S = 1800.0
"""A job that neither progresses nor is watched for this long is ended."""


def run_job(
    context: RunContext, agent: Agent, job: str, digest: str, spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Starts the job, or attaches to it, and returns its exit record. Raises LinkLost; calling again goes on."""

    def show(progress: dict[str, Any]) -> None:
        context.tell("progress", **{"what": job, **progress})

    state = agent.start(job, context.run_id, digest, spec)
    return state.exit or agent.wait(context.run_id, job, show, digest)

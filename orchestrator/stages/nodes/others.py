"""The other nodes of a run at its end: what they say, and that nothing of it runs on there. A node that does not
answer holds nothing up: its agent ends the training with its lease.

Example: `stop_and_note(context)`       # 'node b: failed: rank 1: ...' where its end was not the run's
"""

from __future__ import annotations

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.agent.contract.names import Code
from orchestrator.core.errors import AgentError, RemoteError
from orchestrator.core.parallel import on_each
from orchestrator.core.states import Outcome
from orchestrator.stages.context import RunContext

GRACE_S = 20.0
"""The head has ended: ranks elsewhere have nothing to save."""


def stop_and_note(context: RunContext) -> None:
    """Ends the training on every other node, and records how it ended there beside the head's exit."""
    ends: list[dict[str, str]] = []
    for node, ended in zip(context.others, stop(context), strict=True):
        if isinstance(ended, RemoteError):
            ends.append({"node": node.host.name, "outcome": "unknown", "reason": ended.message})
            context.emit("warning", f"node {node.host.name}: {ended.message}")
        elif ended is not None:
            ends.append({"node": node.host.name, "outcome": ended["outcome"], "reason": ended["reason"]})
            if ended["outcome"] != Outcome.FINISHED:
                context.say(f"node {node.host.name}: {ended['outcome']}: {ended['reason']}")
    if ends:
        context.set_run_facts(exit={**(context.facts.exit or {}), "nodes": ends})
    if " is lost: " in context.run.cause:
        left = next((name for name in context.host.nodes if f"node {name} (" not in context.run.cause), "HOST")
        context.say(f"without it: gptctl run {context.run.recipe} --host {left} --resume-from {context.run_id}")


def stop(context: RunContext) -> list[ExitRecord | RemoteError | None]:
    """Ends the training on every other node; of each how it ended, or why it does not say so."""
    return on_each(context.others, _stopped)


def _stopped(node: RunContext) -> ExitRecord | RemoteError | None:
    """How it ended there; or why the node does not say so."""
    try:
        return node.agent.stop(node.run_id, grace_s=GRACE_S)["exit"]
    except RemoteError as error:
        return error


def release(context: RunContext) -> None:
    """Ends every job of the run on the other nodes, and frees what it holds there."""
    on_each(context.others, _release)


def _release(node: RunContext) -> None:
    try:
        node.agent.release(node.run_id)
    except AgentError as error:
        if error.code != Code.NO_SUCH_RUN:
            raise
    except RemoteError as error:
        node.emit("warning", f"it is not released: {error.message}")

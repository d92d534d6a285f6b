"""Fetch: every kept, complete checkpoint and the whole log are here, verified against their manifests."""

from __future__ import annotations

from orchestrator.core.states import Outcome
from orchestrator.stages.checkpoints import pull
from orchestrator.stages.context import RunContext
from orchestrator.stages.follow import mirror_until_end
from trainer import contract


def fetch(context: RunContext) -> None:
    """All kept checkpoints and every byte of the logs. Nothing to do where nothing was launched or nothing is left."""
    run = context.run
    if not context.ledger.attempts(run.id) or run.options.get("abandon"):
        return
    if run.outcome == Outcome.PREEMPTED:
        context.say(f"the machine is gone; the newest checkpoint here is of step {run.safe_step or 'none'}")
        return
    context.agent.stop(run.id)  # a stop that came between two stages may have left it running
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    mirror_until_end(context)
    kept = [found for found in context.agent.manifest(run.id) if found.kept]
    pull(context, kept, context.mirror / contract.CHECKPOINTS)

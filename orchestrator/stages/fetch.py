"""Fetch: every kept, complete checkpoint and the whole log are here, verified against their manifests."""

from __future__ import annotations

from orchestrator.core.errors import LinkLost, Unreachable
from orchestrator.stages import gone, guard
from orchestrator.stages.checkpoints import pull
from orchestrator.stages.context import RunContext
from orchestrator.stages.follow import mirror_until_end
from trainer import contract


def fetch(context: RunContext) -> None:
    """All kept checkpoints and every byte of the logs. Nothing to do where nothing was launched or nothing is left."""
    run = context.run
    if not context.ledger.attempts(run.id) or run.options.get("abandon"):
        return
    if context.rental.data.get("gone_at"):
        return context.say(f"the machine is gone: {gone.lost(context)}")
    try:
        _fetch(context)
    except (LinkLost, Unreachable):
        if not gone.was_ended(context):
            raise
        context.remember(gone_at=context.now())
        context.tell("warning", f"{context.rental.instance_id} is gone: {gone.lost(context)}")


def _fetch(context: RunContext) -> None:
    run = context.run
    guard.extend(context)
    context.agent.stop(run.id)  # a stop that came between two stages may have left it running
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    mirror_until_end(context)
    kept = [found for found in context.agent.manifest(run.id) if found.kept]
    pull(context, kept, context.mirror / contract.CHECKPOINTS)

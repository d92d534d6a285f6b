"""Fetch: every kept, complete checkpoint is here or in the store, verified, and the whole log is here."""

from __future__ import annotations

from orchestrator.core.errors import LinkLost, Unreachable
from orchestrator.stages import gone, guard, offload
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
        gone.recover(context)
        return context.say(f"the machine is gone: {gone.lost(context)}")
    try:
        _fetch(context)
    except (LinkLost, Unreachable):
        if not gone.was_ended(context):
            raise
        context.remember(gone_at=context.now())
        gone.recover(context)
        context.tell("warning", f"{context.rental.instance_id} is gone: {gone.lost(context)}")


def _fetch(context: RunContext) -> None:
    run = context.run
    guard.extend(context)
    context.agent.stop(run.id)  # a stop that came between two stages may have left it running
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    mirror_until_end(context)
    stored = offload.settle(context)
    if stored and not context.provider.paid:
        stored = frozenset()  # a machine that costs nothing waits until they are here, too
    kept = [found for found in context.agent.manifest(run.id) if found.kept]
    pull(context, [found for found in kept if found.step not in stored], context.mirror / contract.CHECKPOINTS)
    if stored:
        context.say(
            f"{len(stored)} checkpoints lie verified in {offload.uri(context)}; "
            f"gptctl fetch {run.id} brings best and latest here"
        )

"""Fetch: every kept, complete checkpoint is here or in the store, verified, and the whole log is here."""

from __future__ import annotations

from orchestrator.agent.contract.names import JobName
from orchestrator.core.errors import LinkLost, Unreachable
from orchestrator.stages.checkpoints import store_job
from orchestrator.stages.checkpoints.copies import drop_incomplete, pull, pull_or_store
from orchestrator.stages.checkpoints.mirror import mirror_until_end
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.machine.jobs import machine_status, note_attempt, stop_training
from orchestrator.stages.nodes import others
from orchestrator.stages.outcome import machine_gone
from trainer import run_files


def fetch(context: RunContext) -> None:
    """All kept checkpoints and every byte of the logs. Nothing to do where nothing was launched or nothing is left."""
    if context.facts.abandon:
        return
    if context.machine_facts.life.gone_at:
        if context.attempt is not None:
            machine_gone.recover(context)
            context.say(f"the machine is gone: {machine_gone.lost(context)}")
        return
    try:
        if _trained(context):
            _fetch(context)
    except (LinkLost, Unreachable):
        if not machine_gone.was_ended(context):
            raise
        boot.note_gone(context)
        machine_gone.recover(context)
        context.emit("warning", f"{context.rental.instance_id} is gone: {machine_gone.lost(context)}")


def _trained(context: RunContext) -> bool:
    """Whether a training was started. One whose start was sent may be on the machine while nothing here says so.

    Raises Unreachable or LinkLost where only the machine can tell and does not answer.
    """
    asked = context.facts.synced is not None and context.machine_facts.reached
    if asked and context.attempt is None:
        status = machine_status(context)
        if status is not None and JobName.TRAIN in status["jobs"]:
            note_attempt(context)
    return context.attempt is not None


def _fetch(context: RunContext) -> None:
    run = context.run
    deadline.extend(context)
    stop_training(context)  # a stop that came between two stages may have left it running
    others.stop_and_note(context)
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    mirror_until_end(context)
    stored = store_job.settle(context)
    if stored and not context.provider.paid:
        stored = frozenset()  # a machine that costs nothing waits until they are here, too
    kept = [found for found in context.agent.manifest(run.id) if found.kept]
    folder = context.mirror / run_files.CHECKPOINTS
    left = [found for found in kept if found.step not in stored]
    if not pull_or_store(context, left, folder):
        stored = store_job.settle(context)
        pull(context, [found for found in left if found.step not in stored], folder)
    if stored:
        drop_incomplete(folder)
        context.say(
            f"{len(stored)} checkpoints are verified in {store_job.uri(context)}; "
            f"gptctl fetch {run.id} brings best and latest here"
        )

"""Sync: the trainer's source and the data are on the machine, every byte verified. Sends only what is missing."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.facts.run_facts import Synced
from orchestrator.stages.checkpoints.resume_from import place_checkpoint
from orchestrator.stages.context import RunContext
from orchestrator.stages.data.sending import place_data, push_trainer


def sync(context: RunContext) -> None:
    """Leaves `source` (PYTHONPATH there), `data` (DataConfig fields) and `dataset` (what it is) in the run's record."""
    sent = context.sent_ahead or Synced(push_trainer(context), place_data(context))
    facts = context.facts
    there = place_checkpoint(context, facts.resume_from, "resume")
    weights = place_checkpoint(context, None if there else facts.init_from, "initial")
    context.set_run_facts(synced=replace(sent, resume_from_there=there, init_from_there=weights))

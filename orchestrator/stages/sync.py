"""Sync: the trainer's source and the data are on the machine, every byte verified. Sends only what is missing."""

from __future__ import annotations

from orchestrator.stages.checkpoints.resume_from import place_checkpoint
from orchestrator.stages.context import RunContext
from orchestrator.stages.data.sending import Sent, place_data, push_trainer


def sync(context: RunContext) -> None:
    """Leaves `source` (PYTHONPATH there), `data` (DataConfig fields) and `dataset` (what it is) in the run's record."""
    sent = context.sent_ahead or Sent(push_trainer(context), place_data(context))
    source, data = sent
    resume_from = place_checkpoint(context)
    context.note(source=source, data=data, resume_from_there=resume_from)

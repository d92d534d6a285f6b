"""Sync: the trainer's source and the data are on the machine, every byte verified. Sends only what is missing."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.facts.run_facts import Synced
from orchestrator.core.parallel import on_each
from orchestrator.core.states import State
from orchestrator.stages.checkpoints.continue_from import put_records
from orchestrator.stages.checkpoints.resume_from import place_checkpoint
from orchestrator.stages.context import RunContext
from orchestrator.stages.data.sending import place_data, push_trainer
from orchestrator.stages.machine.jobs import has_started, machine_status


def sync(context: RunContext) -> None:
    """Leaves `source` (PYTHONPATH there), `data` (DataConfig fields) and `dataset` (what it is) in the run's record. On
    several nodes all get the data at the same time, and the head alone the checkpoint: it hands it over."""
    nodes = (context,) if context.run.state == State.TRAINING else context.nodes
    sent, *to_others = on_each(nodes, _send)
    for node, synced in zip(nodes[1:], to_others, strict=True):
        node.set_run_facts(synced=synced)
    facts = context.facts
    if facts.synced is not None and context.attempt is not None:
        # What it began from may have made room here for a newer checkpoint.
        there, weights = facts.synced.resume_from_there, facts.synced.init_from_there
        return context.set_run_facts(synced=replace(sent, resume_from_there=there, init_from_there=weights))
    elsewhere = facts.lost_nodes.head_moved or (facts.recovery is not None and facts.recovery.interruptions > 0)
    if elsewhere and not has_started(context, machine_status(context)):
        put_records(context)
    there = place_checkpoint(context, facts.resume_from, "resume")
    weights = place_checkpoint(context, None if there else facts.init_from, "initial")
    context.set_run_facts(synced=replace(sent, resume_from_there=there, init_from_there=weights))


def _send(node: RunContext) -> Synced:
    return node.sent_ahead or Synced(push_trainer(node), place_data(node))

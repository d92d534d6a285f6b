"""The verdict on a training that is over, from its exit record: outcome, cause and times go into the ledger.

It asks no machine: the record came from one, or from the store it left it in.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.core.states import Outcome, State
from orchestrator.report.metrics import read_training
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.reported import tell_deaths


def conclude(context: RunContext, exit_record: ExitRecord) -> None:
    """Leaves the run ending: exit.json decides; torchrun's code is evidence."""
    outcome = Outcome(exit_record["outcome"])
    reason = exit_record["reason"]
    context.ledger.update_run(context.run_id, eta_s=None)
    count_steps(context)
    if (attempt := context.attempt) is not None:
        # Durations travel, not dates: the machine's clock may be off.
        started_at = _started_at(context, exit_record, attempt.started_at)
        ended_at = min(context.now(), started_at + (exit_record["duration_s"] or 0.0))
        if not context.provider.paid:  # a rented machine is billed until it is gone
            context.ledger.end_away(context.run_id, ended_at)
            if context.facts.queue is not None:
                context.ledger.end_waiting(context.run_id, started_at)
        context.ledger.update_attempt(
            context.run_id, attempt.number, started_at=started_at, ended_at=ended_at, last_step=context.run.step
        )
    tell_deaths(context, exit_record.get("deaths", []))
    context.set_run_facts(exit=dict(exit_record))
    context.ledger.set_state(context.run_id, State.ENDING, outcome=outcome, cause=reason)
    if outcome in (Outcome.FAILED, Outcome.LIMIT):
        context.emit("warning", f"training {outcome}: {reason}")
        for line in exit_record.get("last_lines", [])[-10:]:
            context.emit("log", line)
    elif outcome == Outcome.PREEMPTED:
        context.emit("preempted", f"{reason}; fetching what was saved while the machine is there")


def _started_at(context: RunContext, exit_record: ExitRecord, noted_at: float) -> float:
    """When its training began, by this computer's clock: one that waited began long after it was put there."""
    queue, said = context.facts.queue, exit_record["started_at"]
    if queue is None or said is None:
        return noted_at
    context.set_run_facts(queue=replace(queue, ahead=None, has_started=True))
    return min(context.now(), max(context.rental.created_at, said - queue.skew_s))


def count_steps(context: RunContext) -> None:
    """Into the run's row, which a follower that was killed did not write any more, what the lines here say."""
    training = read_training(context.mirror)
    if training.step >= max(1, context.run.step or 0):
        context.ledger.update_run(
            context.run_id, step=training.step, loss=training.last_loss, val_loss=training.last_val_loss, eta_s=None
        )

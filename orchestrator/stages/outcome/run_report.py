"""The report of a run, written from ledger and mirrored files only: by the stage, and again when the bill is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.core.money.cost import run_cost
from orchestrator.core.planning.many_machines.attempts import Stretch, on_demand_usd
from orchestrator.core.planning.rates import is_compiled, number_type
from orchestrator.core.states import Outcome
from orchestrator.ledger.bills.run_estimate import run_estimate
from orchestrator.ledger.records import RateRecord, StageInterval
from orchestrator.report.evaluations import from_events
from orchestrator.report.lineage import ancestors
from orchestrator.report.metrics import read_lines, read_training
from orchestrator.report.run_report import InterruptionsPart
from orchestrator.report.summary import Records, write_report
from orchestrator.stages.context import RunContext
from trainer.arithmetic import flop_per_token
from trainer.run_files import EVENTS

LEAST_STEPS = 100
"""Shorter runs say more about starting up than about speed."""


def write(context: RunContext) -> None:
    """Writes the files from scratch; running it twice gives the same files."""
    context.mirror.mkdir(parents=True, exist_ok=True, mode=0o700)
    keep_evaluations(context)
    run, intervals = context.run, context.ledger.intervals(context.run_id)
    cost = run_cost(intervals, machine=context.machine, tokens=run.tokens_trained, host=context.host)
    estimate = run_estimate(run, context.rental, cost.cost_usd)
    if run.facts.engine.gpu_hours is not None:
        cost = replace(cost, gpu_hours=run.facts.engine.gpu_hours)
    cost = replace(cost, less_usd=estimate.less_usd, more_usd=estimate.more_usd)
    ledger = context.ledger
    records = Records(
        ledger.evaluations(run.id), ledger.events(run.id), ancestors(run, ledger.run),
        _interruptions(context, intervals, cost.cost_usd),
    )  # fmt: skip
    write_report(run, intervals, cost, context.mirror, records)
    keep_rate(context)


def _interruptions(
    context: RunContext, intervals: Sequence[StageInterval], cost_usd: float
) -> InterruptionsPart | None:
    """Of a run that goes on by itself: what interruptions cost, and what the market saved."""
    run, known = context.run, context.facts.recovery
    if known is None:
        return None
    rentals = list(dict.fromkeys(each.rental_id for each in intervals if each.rental_id))
    price = known.on_demand.get(run.machine)
    usd = None
    if price is not None:
        stretches = [
            Stretch(rentals.index(each.rental_id), each.stage, _hours(each))
            for each in intervals if each.rental_id
        ]  # fmt: skip
        tokens = known.lost_steps * context.plan.tokens / max(1, context.plan.steps)
        rate = run.tokens_per_second or context.plan.tokens_per_second
        usd = on_demand_usd(stretches, price, tokens / rate / 3600 if rate else 0.0)
    saved = None if usd is None else usd - cost_usd
    return InterruptionsPart(known.interruptions, len(rentals), known.lost_steps, usd, saved)


def _hours(each: StageInterval) -> float:
    return max(0.0, (each.ended_at or each.last_at) - each.started_at) / 3600


def keep_evaluations(context: RunContext) -> None:
    """Keeps what the trainer measured at the end, for comparisons of runs."""
    for found in from_events(context.run_id, read_lines(context.mirror / EVENTS)):
        context.ledger.add_evaluation(found)


def keep_rate(context: RunContext) -> None:
    """What a finished run measured is where the next plan for this machine starts from."""
    run, training = context.run, read_training(context.mirror)
    if run.outcome != Outcome.FINISHED or training.step < LEAST_STEPS or not training.tokens_per_second:
        return
    recipe, machine = context.recipe, context.machine
    context.ledger.add_rate(
        RateRecord(
            run_id=run.id,
            machine=machine.name,
            tokens_per_second=training.tokens_per_second,
            flop_per_token=flop_per_token(recipe.model.config()),
            measured_at=context.now(),
            compiled=is_compiled(recipe, machine) if training.started.compiled is None else training.started.compiled,
            precision=number_type(recipe, machine),
        )
    )

"""A training that waits in its machine's queue: what it asks of the queue, when its turn came, and what that costs.

While it waits, its time costs nothing: the run that trains pays for the machine. The machine keeps the queue itself
(agent/queue), so nothing here starts a training.

Example: `turn.note(context, heartbeat.status)`      # "3 trainings come first"; later: "its turn has come"
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from orchestrator.agent.contract.answers import RunStatus
from orchestrator.agent.contract.names import JobName
from orchestrator.agent.contract.requests import QueueTerms, StopRule
from orchestrator.core.facts.run_facts import EarlyStop
from orchestrator.core.planning.forecast import kept_bytes
from orchestrator.core.planning.limits import reserve_s
from orchestrator.core.states import State
from orchestrator.ledger.records import RunRecord
from orchestrator.report.metrics import read_validations
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import engine_job
from trainer.arithmetic import checkpoint_bytes


def terms(context: RunContext) -> QueueTerms:
    """What this run's training asks of the queue."""
    queue, plan, recipe = context.facts.queue, context.plan, context.recipe
    assert queue is not None
    each = checkpoint_bytes(recipe.model.config(), recipe.train.optimizer)
    found: QueueTerms = {
        "arm": queue.arm or context.run_id,
        "needs_s": plan.hours.train * 3600,
        "reserve_s": reserve_s(plan),
        "disk_bytes": kept_bytes(recipe, plan.steps, plan.from_step) + each,
        "on_failure": queue.on_failure,
    }
    if queue.group is not None:
        found["group"] = queue.group
    if queue.group_s is not None:
        found["group_s"] = queue.group_s
    if queue.stop is not None and queue.stop.baseline != context.run_id:
        found["stop"] = stop_rule(queue.stop, context.mirror.parent)
    return found


def stop_rule(stop: EarlyStop, mirrors: Path) -> StopRule:
    """What ends it early, with the losses of its baseline that are here: that may have trained on another machine,
    which was taken away. mirrors: of all runs."""
    losses = [[each.step, each.value] for each in read_validations(mirrors / stop.baseline)]
    return {"baseline": stop.baseline, "step": stop.step, "margin": stop.margin, "losses": losses}


def begin(context: RunContext) -> None:
    """It has been put into the queue: notes how far the machine's clock is off, so that its times can be read later."""
    status = context.agent.status(context.run_id)
    queue = context.facts.queue
    assert queue is not None
    ahead = status["runs"][context.run_id]["ahead"]
    context.set_run_facts(queue=replace(queue, ahead=ahead, skew_s=status["time_s"] - context.now()))
    if ahead is not None and pays_another(context):
        context.say(_words(ahead))


def note(context: RunContext, status: RunStatus) -> None:
    """With every heartbeat: says how many come first when that changes, and that its turn has come."""
    queue, ahead = context.facts.queue, status["ahead"]
    if queue is None or queue.has_started or ahead == queue.ahead is not None:
        return
    if ahead is not None:
        context.set_run_facts(queue=replace(queue, ahead=ahead))
        return context.say(_words(ahead))
    train = status["jobs"].get(JobName.TRAIN)
    if train is None or train["started_at"] is None:
        return  # dropped, or between the queue and its start
    started_at = min(context.now(), train["started_at"] - queue.skew_s)
    context.set_run_facts(queue=replace(queue, ahead=None, has_started=True))
    if (attempt := context.attempt) is not None:
        context.ledger.update_attempt(context.run_id, attempt.number, started_at=started_at)
    if context.interval:
        # What it waited for another run has paid; from here on it pays itself.
        context.ledger.close_stage(context.interval, context.now())
        context.interval = context.ledger.open_stage(
            context.run_id, context.rental.id, context.stage or "follow", context.rental.price_per_hour_usd
        )
    context.say("its turn has come: the training starts")


def place(context: RunContext) -> str:
    """What a run that waits for its turn waits for; empty for every other run."""
    queue = context.facts.queue
    return "" if queue is None or queue.ahead is None or queue.has_started else _words(queue.ahead)


def _words(ahead: int) -> str:
    return f"queued: {ahead + 1} trainings come first" if ahead else "queued: it starts when the training there ends"


def price_per_hour_usd(context: RunContext) -> float:
    """What this run's time costs now: nothing while another run trains on the machine that it waits for."""
    if context.engine_of is not None:
        return engine_job.price_per_hour_usd(context.facts.engine, context.rental.price_per_hour_usd)
    if pays_another(context):
        return 0.0
    rental = context.rental
    unproven = [each for each in rental.facts.given_back if each.life.gone_at is None]
    return rental.price_per_hour_usd + len(unproven) * rental.each_per_hour_usd


def pays_another(context: RunContext) -> bool:
    """Whether this run waits, or gets ready, beside one that trains."""
    queue, rental = context.facts.queue, context.rental
    if queue is None or queue.has_started:
        return False
    here = rental.id if context.provider.paid else None  # a machine of your own has a rental for each run
    newest_first = context.ledger.runs(unfinished_only=True, rental_id=here, host=rental.host)
    before = itertools.dropwhile(lambda run: run.id != context.run_id, newest_first)
    return any(
        run.state == State.TRAINING for run in before if run.id != context.run_id
    )  # the first of them trains, seen from here or not


def trains(run: RunRecord) -> bool:
    """Whether this run's training has begun, as far as is known here."""
    return run.state == State.TRAINING and (run.facts.queue is None or run.facts.queue.has_started)

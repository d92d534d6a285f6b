"""The next attempt of a run whose machine was taken away: what is left of its ceiling, where its newest checkpoint is,
and whether it goes on by itself.

The machine before is confirmed gone and its bill is known when this is asked, so no two of a run are ever held at once.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.errors import UserError
from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.facts.run_facts import Recovery, ResumeFrom, RunFactChanges
from orchestrator.core.money.cost import spent
from orchestrator.core.planning.many_machines import attempts as terms
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import attempts
from orchestrator.ledger.identity import new_rental_id
from orchestrator.ledger.records import RENTAL_RELEASED, Rental
from orchestrator.stages.checkpoints import continue_from
from orchestrator.stages.context import RunContext


def begin(context: RunContext) -> bool:
    """Whether the run goes on: then it is planned again, on a rental that holds nothing yet. One of a sweep does not
    here: its runs go on together (rejoin)."""
    run, rental, queue = context.run, context.rental, context.facts.queue
    taken = run.outcome is Outcome.PREEMPTED and rental.state == RENTAL_RELEASED and rental.instance_id is not None
    in_sweep = queue is not None and queue.group is not None
    if context.facts.recovery is None or not taken or in_sweep or context.facts.abandon:
        return False
    standing = _standing(context, context.facts.recovery, _left_usd(context), _left_h(context))
    return standing is not None and _go_on(context, *standing, _rental(context, standing[1]))


def rejoin(context: RunContext, rental: Rental, known: Recovery) -> bool:
    """As begin, of a run of a sweep that has ended with its machine: on `rental`, which is for all that were on that
    machine, under what is left of their ceiling. One that only waited there begins at its own first step."""
    standing = _standing(context, known, rental.facts.ceiling_usd, None)
    return standing is not None and _go_on(context, *standing, rental)


def _standing(
    context: RunContext, known: Recovery, left_usd: float | None, left_h: float | None
) -> tuple[Recovery, terms.Standing, ResumeFrom | None] | None:
    """How the run stands after this interruption, and where it goes on; None, and said why, where it does not."""
    try:
        origin = continue_from.newest(context)
    except UserError as error:
        context.emit("warning", f"not continued: {error.message}")
        return None
    began = context.facts.resume_from.step if context.facts.resume_from else 0
    step, run = origin.step if origin is not None else 0, context.run
    waited = context.facts.queue is not None and not context.facts.queue.has_started and not step and not run.step
    lost_nothing = waited or context.rental.instance_id is None  # no machine could be had: nobody took one away
    recovery = known if lost_nothing else _counted(known, lost=max(0, run.step - step), is_fruitless=step <= began)
    standing = terms.Standing(recovery.interruptions, recovery.fruitless, left_usd, left_h)
    if (why := terms.why_not(context.plan, standing, recovery.most)) is not None:
        kept = f"; its newest checkpoint is {origin.place}" if origin is not None else ""
        context.emit("warning", f"not continued: {why}{kept}")
        return None
    return recovery, standing, origin


def _go_on(
    context: RunContext, recovery: Recovery, standing: terms.Standing, origin: ResumeFrom | None, rental: Rental
) -> bool:
    run, queue, step = context.run, context.facts.queue, origin.step if origin is not None else 0
    _close(context)
    continue_from.put_aside(context, len(context.ledger.attempts(run.id)), step)
    facts: RunFactChanges = {
        "recovery": recovery, "resume_from": origin, "prepared": None, "software": None, "synced": None,
        "store": None, "store_urls": None, "deaths": 0, "exit": None,
        "queue": queue and replace(queue, ahead=None, has_started=False, skew_s=0.0),
    }  # fmt: skip
    attempts.begin(context.ledger.rows, run, rental, facts, step=step, now=context.now())
    context.emit("warning", _words(recovery, standing, step))
    return context.run.state is State.PLANNED


def _counted(known: Recovery, *, lost: int, is_fruitless: bool) -> Recovery:
    return replace(
        known, interruptions=known.interruptions + 1, fruitless=known.fruitless + 1 if is_fruitless else 0,
        lost_steps=known.lost_steps + lost,
    )  # fmt: skip


def _close(context: RunContext) -> None:
    """A machine that vanished left no word of how far its training came."""
    attempt, run = context.attempt, context.run
    if attempt is not None:
        ended_at = attempt.ended_at or min(context.now(), run.seen_at or context.now())
        context.ledger.update_attempt(run.id, attempt.number, ended_at=ended_at, last_step=run.step)


def _left_usd(context: RunContext) -> float | None:
    """Under the run's ceiling, less what all its machines have cost."""
    ceiling = context.plan.ceiling_usd
    return None if ceiling is None else ceiling - spent(context.ledger.intervals(context.run_id))


def _left_h(context: RunContext) -> float | None:
    longest = context.plan.limits.max_hours
    held_s = sum((each.ended_at or each.last_at) - each.started_at for each in context.ledger.intervals(context.run_id))
    return None if longest is None else longest - held_s / 3600


def _rental(context: RunContext, standing: terms.Standing) -> Rental:
    old, now = context.rental, context.now()
    facts = RentalFacts(ceiling_usd=standing.left_usd, ceiling_h=standing.left_h)
    price = context.plan.price_per_hour_usd or old.price_per_hour_usd
    return Rental(
        new_rental_id(old.machine, now), old.provider, old.host, old.machine, now, price_per_hour_usd=price,
        folder=old.folder, facts=facts,
    )  # fmt: skip


def _words(recovery: Recovery, standing: terms.Standing, step: int) -> str:
    left = "" if standing.left_usd is None else f"; ${standing.left_usd:.2f} are left under its ceiling"
    if not recovery.interruptions:
        return f"waits on another machine{left}"
    return (
        f"interruption {recovery.interruptions} of at most {recovery.most}: going on from step {step} on another "
        f"machine{left}"
    )

"""How long a rental may last under its ceiling, other nodes wait for one that was lost, and a stage waits although its
run is stopped meanwhile.

Example: `pause(context, 60.0)`      # Stopped, two seconds after `gptctl stop` in another terminal
"""

from __future__ import annotations

import math
import time

from orchestrator.core.errors import LimitReached, NoCapacity
from orchestrator.core.planning.limits import budget_s, reserve_s
from orchestrator.core.states import State
from orchestrator.ledger.records import INTENT_REFUSED, INTENT_UNSEEN
from orchestrator.stages.context import RunContext

REPLACE_WITHIN_S = 15 * 60.0
"""For so long the other nodes wait for one in place of one that was lost."""
MOST_MACHINES = 3
"""How many machines of one run, or in place of a lost node, may turn out bad before it is given up."""
ENDING_STAGES = frozenset({"fetch", "report", "release"})
LISTEN_EVERY_S = 2.0


class Stopped(Exception):
    """The run was stopped from elsewhere while its driver waited. No failure: the driver goes on with the ending."""


def hear_stop(context: RunContext) -> None:
    """Raises Stopped where the run is ending while one of the stages before still works for it: `gptctl stop` and
    `release` beside its driver leave the rest to that."""
    if context.run.state in (State.ENDING, State.ENDED) and context.stage not in ENDING_STAGES:
        raise Stopped(f"{context.run_id} was stopped")


def pause(context: RunContext, seconds: float) -> None:
    """Waits between two looks of a stage. Raises as hear_stop does, within LISTEN_EVERY_S."""
    hear_stop(context)
    while seconds > 0:
        time.sleep(min(seconds, LISTEN_EVERY_S))
        seconds -= LISTEN_EVERY_S
        hear_stop(context)


def began_at(context: RunContext) -> float:
    """When the rental began to use up what was agreed to (UTC epoch seconds): its first machine was ordered then. Hours
    that pass while nothing is for sale take nothing from it: now, while no machine is ordered."""
    rental = context.rental
    if not context.provider.paid:
        return rental.created_at
    never_bought = (INTENT_REFUSED, INTENT_UNSEEN)
    ordered = [each.created_at for each in context.ledger.intents(rental.id) if each.state not in never_bought]
    return min(ordered, default=rental.created_at if rental.instance_ids else context.now())


def rental_budget_s(context: RunContext) -> float | None:
    """Seconds from began_at to the moment its machine must be gone; None where nothing limits it. Runs
    that share it by its queue share one ceiling: that of their sweep, else the sum of what each may cost."""
    rental, plan = context.rental, context.plan
    usd, hours, price = rental.facts.ceiling_usd, rental.facts.ceiling_h, rental.price_per_hour_usd
    bounds_h = [*([usd / price] if usd is not None and price else []), *([hours] if hours is not None else [])]
    if bounds_h:
        return min(bounds_h) * 3600
    sharing = context.ledger.runs(rental_id=rental.id)
    if not any(run.facts.queue is not None for run in sharing):
        return budget_s(plan)
    each = [budget_s(run.plan) for run in sharing if run.plan is not None]
    known = [seconds for seconds in each if seconds is not None]
    return sum(known) if known and len(known) == len(each) else None


def replacement_left_s(context: RunContext) -> float:
    """Seconds that the ceiling leaves for another machine until no training could begin on it; infinite for a run that
    lost no node."""
    whole_s = rental_budget_s(context) if context.facts.lost_nodes.times else None
    if whole_s is None:
        return math.inf
    return began_at(context) + whole_s - reserve_s(context.plan) - context.now()


def check_replacement(context: RunContext, why: str = "what was bought could not be used") -> None:
    """Raises NoCapacity when the others have waited for another node for long enough, or too many of those that were
    bought for them were bad, and LimitReached when the ceiling leaves no time to train. Any run that lost none may buy.
    """
    lost = context.facts.lost_nodes
    if not lost.times:
        return
    name = lost.names[-1]
    hint = f"its checkpoints are fetched; gptctl run {context.recipe.name} --host HOST --resume-from {context.run_id}"
    if replacement_left_s(context) <= 0:
        raise LimitReached(f"no replacement for {name}: the ceiling leaves no time to train on it; {why}", hint)
    if lost.unfit >= MOST_MACHINES:
        raise NoCapacity(f"no replacement for {name}: {lost.unfit} machines in a row could not be used", hint)
    if context.now() - (lost.since or 0.0) >= REPLACE_WITHIN_S:
        raise NoCapacity(f"no replacement for {name} in {REPLACE_WITHIN_S / 60:.0f} min: {why}", hint)


def await_replacement(context: RunContext, why: str, ask_again_s: float) -> None:
    """Returns when to ask again. Raises as check_replacement and pause do."""
    check_replacement(context, why)
    context.say(f"no replacement yet ({why}); asking again in {ask_again_s:.0f} s")
    pause(context, ask_again_s)

"""The deadline in a rented machine's name: what a watcher acts on when no gptctl follows.

At launch it is near; while preparing progresses it moves forward; before the training starts it becomes the budget
deadline, and a list has to show it. Machines without a bill have none.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.agent.contract.answers import GuardStatus
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.fleet.guard_state import GuardState
from orchestrator.core.ports import Instance
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import box_guard
from orchestrator.stages.machine.bounds import began_at, rental_budget_s

FIRST_S = 90 * 60.0
"""From the launch, or the last sign of progress, to the moment a watcher may end a machine that still prepares."""
MOVE_WHEN_LEFT_S = 60 * 60.0


def budget_deadline(context: RunContext) -> float | None:
    """UTC epoch seconds when billing has to have ended; None where nothing limits the run."""
    whole_s = rental_budget_s(context)
    return None if whole_s is None else began_at(context) + whole_s


def first_deadline(context: RunContext) -> float:
    """For the machine's name at launch: soon, and never after the budget deadline."""
    soon = context.now() + FIRST_S
    return min(soon, budget_deadline(context) or soon)


def extend(context: RunContext) -> None:
    """Preparing progresses: moves the deadlines of its machines forward once less than an hour is left. Cheap to call
    often."""
    for node in context.machines:
        _extend(node)


def _extend(context: RunContext) -> None:
    box_guard.renew(context)
    ends_at = context.rental.ends_at
    if ends_at is None or ends_at - context.now() > MOVE_WHEN_LEFT_S:
        return
    later = first_deadline(context)
    if later > ends_at + 1:
        _set(context, later)


def arm(context: RunContext, seen: GuardStatus | None) -> None:
    """The budget deadline is in the name and seen there, and a guard on the machine is armed. Raises before anything
    is trained if it cannot be. `seen`: what the machine said of its guard just now."""
    ends_at = budget_deadline(context)
    if not context.provider.paid or ends_at is None:
        return
    for node in context.machines:
        _set(node, ends_at)
        box_guard.require(node, None if node.node else seen)


def _set(context: RunContext, ends_at: float) -> None:
    instance = held(context) or _unlisted(context)
    context.provider.set_deadline(instance, ends_at)
    named = context.provider.guard(instance)
    guard = GuardState(named.kind, named.armed or context.host.guard == "watcher", ends_at)
    if box_guard.wanted(context):  # the name is for a watcher beside it; what the box does, the box says
        guard = context.machine_facts.guard or guard
    context.update_rental(ends_at=ends_at, facts={"guard": guard})


def _unlisted(context: RunContext) -> Instance:
    """Our machine while no list shows it, which proves nothing. Raises MachineUnfit when its provider says it ended."""
    rental = context.rental
    if context.provider.find(rental.instance_id or "", rental.facts.region) == "gone":
        raise MachineUnfit(f"{rental.instance_id} is gone: {rental.provider} says that it ended")
    return replace(rental.instance, ends_at=rental.ends_at)


def held(context: RunContext) -> Instance | None:
    """Our machine as the provider lists it now; None when it is not listed."""
    wanted = context.rental.instance_id
    return next((found for found in context.provider.machines() if found.instance_id == wanted), None)

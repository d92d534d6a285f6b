"""The guard on the box: lets a rented machine end itself, and keeps what is known about it true.

`key-on-box` gets the key of the provider's API; `self` needs none, since powering itself off ends such a machine. Armed
at the first contact and again whenever acquire meets the machine (a reboot costs it the key); asked for before
anything trains; ordered to finish when the machine is given back. Hosts with another guard are left alone.
"""

from __future__ import annotations

import time
from contextlib import suppress

from orchestrator.agent.contract.answers import GuardStatus
from orchestrator.agent.contract.names import FINISH_WITHIN_S, Code, GuardKind
from orchestrator.core.errors import AgentError, MachineUnfit, RemoteError
from orchestrator.core.fleet.guard_state import KINDS_ON_BOX
from orchestrator.core.fleet.lease import lease_s
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.bounds import began_at, rental_budget_s
from orchestrator.stages.machine.reported import SAME_S, news_of_guard

RENEW_EVERY_S = 60.0
ARMED_WITHIN_S = 40.0


def wanted(context: RunContext) -> bool:
    """Whether this run's machine guards itself."""
    return context.provider.paid and context.host.guard in KINDS_ON_BOX


def arm(context: RunContext) -> GuardStatus | None:
    """Hands over the key, the lease and the deadline; returns what the machine says of its guard, nothing where it is
    not to have one. Repeating renews them; whether it works, `require` waits for."""
    if not wanted(context):
        return None
    found = _order(context, _left_s(context))
    record(context, found)
    context.guard_renewed_at = context.now()
    return found


def _left_s(context: RunContext) -> float:
    """Until the budget deadline."""
    whole_s = rental_budget_s(context)
    if whole_s is None:
        raise _cannot(context, "nothing limits this run")
    return max(1.0, began_at(context) + whole_s - context.now())


def _order(context: RunContext, deadline_s: float) -> GuardStatus:
    instance = context.rental.instance
    if context.host.guard == GuardKind.SELF:
        try:
            return context.agent.arm_self(
                instance.instance_id, context.rental.id, lease_s=lease_s(), deadline_s=deadline_s
            )
        except AgentError as error:
            if error.code != Code.NO_TIMER:
                raise
            raise _cannot(context, error.message) from error
    call = context.provider.end_call(instance)
    if call is None:
        raise _cannot(context, f"{context.rental.provider} has no call for it")
    return context.agent.arm(instance.instance_id, call, lease_s=lease_s(), deadline_s=deadline_s)


def _cannot(context: RunContext, why: str) -> MachineUnfit:
    return MachineUnfit(f"{context.host.name} cannot end itself: {why}", "set max_cost_usd, or another guard")


def require(context: RunContext, seen: GuardStatus | None) -> None:
    """Returns once the machine says that its guard is armed: it runs, and the API took its key. Raises MachineUnfit.
    `seen`: its report just now; it is armed again unless that is as ordered."""
    if not wanted(context):
        return
    found = seen if seen is not None and _is_as_ordered(context, seen) else arm(context)
    assert found is not None
    until = time.monotonic() + ARMED_WITHIN_S
    while not found["armed"]:
        if time.monotonic() > until:
            record(context, found)
            why = found.get("problem") or "it has not reached the provider's API yet"
            raise MachineUnfit(
                f"launch: the guard on {context.host.name} is not armed: {why}",
                'nothing was trained; set guard = "watcher", or correct the key, and run again',
            )
        time.sleep(0.2)
        found = context.agent.guard()
    record(context, found)


def _is_as_ordered(context: RunContext, seen: GuardStatus) -> bool:
    deadline_s = seen.get("deadline_left_s") if seen["armed"] else None
    return deadline_s is not None and abs(deadline_s - _left_s(context)) <= SAME_S


def renew(context: RunContext) -> None:
    """Preparing progresses: the machine is needed. At most once a minute; a lost link is the caller's to notice. Text
    is prepared before there is a machine: then nothing is connected to, least of all this computer."""
    every_s = min(RENEW_EVERY_S, lease_s() / 4)
    if not wanted(context) or context.now() - context.guard_renewed_at < every_s:
        return
    if context.rental.address.host is None:
        return
    with suppress(RemoteError):
        context.agent.renew(None, lease_s())
        context.guard_renewed_at = context.now()


def hold(context: RunContext) -> None:
    """A machine that is kept stays until the budget deadline, which the guard keeps."""
    guard = context.machine_facts.guard
    if wanted(context) and guard is not None and guard.ends_at is not None:
        context.agent.renew(None, max(1.0, guard.ends_at - context.now()))


def finish(context: RunContext) -> None:
    """The machine is about to be given back: its key's file goes, and should we fail, it ends itself in a minute."""
    if wanted(context):
        with suppress(AgentError):
            context.agent.finish(FINISH_WITHIN_S)


def record(context: RunContext, report: GuardStatus) -> None:
    """Records what the machine reports of its guard, if that is news."""
    guard = news_of_guard(context.rental, context.host.guard, report, context.now())
    if guard is not None:
        context.set_rental_facts(guard=guard)

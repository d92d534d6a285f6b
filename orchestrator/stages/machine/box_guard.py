"""The guard on the box: lets a rented machine end itself, and keeps what is known about it true.

`key-on-box` gets the key of the provider's API; `self` needs none, since powering itself off ends such a machine. Armed
at the first contact and again whenever acquire meets the machine (a reboot costs it the key); asked for before
anything trains; told to finish when the machine is given back. Hosts with another guard are left alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from orchestrator.core.errors import AgentError, MachineUnfit, RemoteError
from orchestrator.core.planning.limits import budget_s
from orchestrator.core.ports import Instance
from orchestrator.stages.context import RunContext

SELF = "self"
KINDS = ("key-on-box", SELF)
LEASE_S = 1800.0
"""How long a machine goes on that nobody asks for and on which nothing progresses."""
LEASE_VARIABLE = "GPTCTL_LEASE_S"
"""Another lease in seconds: for drills and rehearsals."""
RENEW_EVERY_S = 60.0
ARMED_WITHIN_S = 40.0
FINISH_WITHIN_S = 60.0
SAME_S = 30.0


def lease_s() -> float:
    """Seconds of the lease: 30 minutes, or what GPTCTL_LEASE_S says, five seconds at least."""
    try:
        return max(5.0, float(os.environ.get(LEASE_VARIABLE, LEASE_S)))
    except ValueError:
        return LEASE_S


def wanted(context: RunContext) -> bool:
    """Whether this run's machine guards itself."""
    return context.provider.paid and context.host.guard in KINDS


def arm(context: RunContext) -> dict[str, Any]:
    """Hands over the key, the lease and the deadline; returns what the machine says of its guard, nothing where it is
    not to have one. Repeating renews them; whether it works, `require` waits for."""
    if not wanted(context):
        return {}
    rental = context.rental
    instance = Instance(rental.provider, rental.instance_id or "", rental.machine, rental_id=rental.id)
    found = _order(context, instance, _left_s(context))
    note(context, found)
    context.guard_renewed_at = context.now()
    return found


def _left_s(context: RunContext) -> float:
    """Until the budget deadline."""
    whole_s = budget_s(context.plan)
    if whole_s is None:
        raise _cannot(context, "nothing limits this run")
    return max(1.0, context.rental.created_at + whole_s - context.now())


def _order(context: RunContext, instance: Instance, deadline_s: float) -> dict[str, Any]:
    if context.host.guard == SELF:
        try:
            return context.agent.arm_self(
                instance.instance_id, context.rental.id, lease_s=lease_s(), deadline_s=deadline_s
            )
        except AgentError as error:
            if error.code != "no-timer":
                raise
            raise _cannot(context, error.message) from error
    call = context.provider.end_call(instance)
    if call is None:
        raise _cannot(context, f"{context.rental.provider} has no call for it")
    return context.agent.arm(instance.instance_id, call, lease_s=lease_s(), deadline_s=deadline_s)


def _cannot(context: RunContext, why: str) -> MachineUnfit:
    return MachineUnfit(f"{context.host.name} cannot end itself: {why}", "set max_cost_usd, or another guard")


def require(context: RunContext, seen: Mapping[str, Any]) -> None:
    """Returns once the machine says that its guard is armed: it runs, and the API took its key. Raises MachineUnfit.
    `seen`: what it said just now; it is armed anew unless that is as it should be."""
    if not wanted(context):
        return
    deadline_s = seen.get("deadline_left_s") if seen.get("armed") else None
    as_ordered = deadline_s is not None and abs(deadline_s - _left_s(context)) <= SAME_S
    found = dict(seen) if as_ordered else arm(context)
    until = time.monotonic() + ARMED_WITHIN_S
    while not found["armed"]:
        if time.monotonic() > until:
            note(context, found)
            why = found.get("problem") or "it has not reached the provider's API yet"
            raise MachineUnfit(
                f"launch: the guard on {context.host.name} is not armed: {why}",
                'nothing was trained; set guard = "watcher", or correct the key, and run again',
            )
        time.sleep(0.2)
        found = context.agent.guard()
    note(context, found)


def renew(context: RunContext) -> None:
    """Preparing progresses: the machine is needed. At most once a minute; a lost link is the caller's to notice. Text
    is prepared before there is a machine: then nothing is connected to, least of all this computer."""
    every_s = min(RENEW_EVERY_S, lease_s() / 4)
    if not wanted(context) or context.now() - context.guard_renewed_at < every_s:
        return
    if context.rental.address.get("host") is None:
        return
    with suppress(RemoteError):
        context.agent.renew(None, lease_s())
        context.guard_renewed_at = context.now()


def hold(context: RunContext) -> None:
    """A machine that is kept stays until the budget deadline, which the guard keeps."""
    left_s = (context.rental.data.get("guard") or {}).get("ends_at") if wanted(context) else None
    if left_s is not None:
        context.agent.renew(None, max(1.0, left_s - context.now()))


def finish(context: RunContext) -> None:
    """The machine is about to be given back: its key's file goes, and should we fail, it ends itself in a minute."""
    if wanted(context):
        with suppress(AgentError):
            context.agent.finish(FINISH_WITHIN_S)


def note(context: RunContext, state: Mapping[str, Any]) -> None:
    """Keeps what the machine says of its guard, if that is news."""
    known = context.rental.data.get("guard") or {}
    told = told_by({"kind": context.host.guard, **known}, state, context.now())
    if wanted(context) and told != known:
        context.remember(guard=told)


def told_by(known: Mapping[str, Any], state: Mapping[str, Any], now: float) -> dict[str, Any]:
    """`guard` of the rental after the machine's own word. `ends_at`: the latest moment at which it acts; `acts_at`:
    when it acts if all goes on as it is; `leased_until`: before that it does not act. UTC epoch seconds."""
    kind = state.get("kind")
    if kind not in KINDS:
        return {**known, "kind": known.get("kind", "none"), "armed": False}
    return {
        "kind": kind,
        "armed": bool(state["armed"]),
        "ends_at": _moment(known.get("ends_at"), now, state.get("deadline_left_s")),
        "acts_at": _moment(known.get("acts_at"), now, state.get("left_s")),
        "leased_until": _moment(known.get("leased_until"), now, state.get("lease_left_s")),
        "problem": state.get("problem"),
        "holding": state.get("holding") or 0,
    }


def _moment(known: float | None, now: float, left_s: float | None) -> float | None:
    """Stays within some seconds of what was known, so that a heartbeat is no news."""
    if left_s is None or (known is not None and abs(now + left_s - known) <= min(SAME_S, lease_s() / 4)):
        return known
    return now + left_s

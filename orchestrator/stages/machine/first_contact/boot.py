"""From bought to usable: wait, bounded, until a rented machine is healthy; and find out whether it still exists.

Nothing here buys or ends a machine. Every look is noted in the rental: from these notes comes the bill.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TypedDict, Unpack

from orchestrator.core.errors import BadCredentials, NoAnswer, ProviderError, RemoteError, UserError
from orchestrator.core.money.counted_time import counted, read
from orchestrator.core.planning.limits import budget_s, check_plan
from orchestrator.core.planning.planner import priced
from orchestrator.core.ports import Instance, Life
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.bounds import pause, replacement_left_s
from orchestrator.stages.machine.deadline import held

LOOK_EVERY_S = 2.0
FIRST_LOOKS_S = 0.25
"""Between looks at a machine that was bought just now: some are up within a second, and the provider keeps its pace."""
LONGEST_BOOT_MINUTES = 30.0
TELL_EVERY_S = 10.0
GONE = ("terminated", "preempted")
LOST = (*GONE, "stopped")
"""Nothing runs there; a stopped one still has to be ended."""
ENDS_WITHIN_S = 600.0
SILENT_S = 600.0
"""For so long a boot waits for an API that does not answer; its silence says nothing about the machine."""
UNLISTED_S = 120.0
"""For so long a machine may be missing in lists, while nothing answers for its id, before it counts as taken away."""
LISTS_LAG_S = 60.0
"""A list that shows a machine booting may be as old as this: it may have been active, and billed, ever since."""


class Moments(TypedDict, total=False):
    """Fields of MachineLife."""

    booting_at: float | None
    unhealthy_at: float | None
    active_at: float | None
    alive_at: float | None
    gone_at: float | None


class BadMachine(ProviderError):
    """It was bought and is unfit: it is given back, and another one may be tried."""


class NeverListed(ProviderError):
    """It was bought, and no list shows it: it is ended by its id, and no other one is bought."""


def wait_until_active(context: RunContext) -> Instance:
    """The machine once it is active with an address. Raises BadMachine for one that is unhealthy, gone or stuck,
    NeverListed for one that no list shows, and NoAnswer when the API is silent for SILENT_S."""
    usual = context.machine.boot_minutes or LONGEST_BOOT_MINUTES / 2
    longest_s = min(max(2 * 60 * usual, context.provider.longest_boot_s), replacement_left_s(context))
    began, told, heard = context.now(), 0.0, context.now()
    while True:
        asked = context.now()
        try:
            found = held(context)
        except NoAnswer as error:
            if context.now() - heard > SILENT_S:
                raise
            context.emit("seen", f"{error.message}; looking again")
            pause(context, LOOK_EVERY_S)
            began += context.now() - asked
            continue
        heard = context.now()
        status = found.status if found else "not listed"
        _note(context, status, asked)
        if found and found.status == "active" and found.address is not None:
            _check_price(context, found)
            return found
        waited_s = context.now() - began
        if found is None and waited_s > context.provider.settle_s and _life_unseen(context):
            raise NeverListed(
                f"{context.rental.instance_id} was bought and is in no list after {waited_s / 60:.0f} min",
                "gptctl orphans --reap ID ends a machine by its id",
            )
        if (found and found.status in ("unhealthy", "terminating", *LOST)) or waited_s > longest_s:
            why = f": {found.why}" if found and found.why else ""
            raise BadMachine(f"{context.rental.instance_id} is {status} after {waited_s / 60:.0f} min{why}")
        if context.now() - told > TELL_EVERY_S:
            told = context.now()
            context.say(f"booting {waited_s / 60:.0f}m, usual {usual:.0f}m ({status})")
        pause(context, min(LOOK_EVERY_S, max(FIRST_LOOKS_S, waited_s / 4)))


def _check_price(context: RunContext, listed: Instance) -> None:
    """The price that the provider lists for the machine replaces the one you agreed to. The ceiling in dollars stays,
    so a higher price brings the deadline nearer. Raises LimitReached when the run no longer fits its limits."""
    agreed, price = context.rental.price_per_hour_usd, listed.price_per_hour_usd * context.rental.nodes
    if price <= 0 or abs(price - agreed) < 1e-6 or (context.rental.nodes > 1 and price < agreed):
        return  # of several machines each may count as the dearest
    context.update_rental(price_per_hour_usd=price)
    plan = priced(context.plan, price)
    context.ledger.update_run(context.run_id, plan=plan.to_json())
    left_s = budget_s(plan)
    until = "" if left_s is None else f"; the run ends after {left_s / 3600:.1f} h at most"
    with_others = f" with its {context.rental.nodes - 1} other" if context.rental.nodes > 1 else ""
    text = f"{listed.instance_id} costs ${price:.2f}/h{with_others}, and you agreed to ${agreed:.2f}/h{until}"
    context.emit("warning", text, price_per_hour_usd=price, agreed_per_hour_usd=agreed)
    check_plan(plan)


def _life_unseen(context: RunContext) -> bool:
    """Whether no list has shown the machine since it was bought."""
    life = context.machine_facts.life
    return life.active_at is None and life.alive_at is None and life.unhealthy_at is None


def _note(context: RunContext, status: str, asked: float) -> None:
    """For the bill, which may begin right after a look that showed it booting, and before its address is known."""
    if status == "booting":
        at = asked - min(LISTS_LAG_S, context.provider.settle_s)
        note_life(context, booting_at=max(at, context.machine_facts.life.booting_at or at))
    elif status == "active" and context.machine_facts.life.active_at is None:
        note_life(context, active_at=billed_until(context))
    elif status == "unhealthy" and context.machine_facts.life.unhealthy_at is None:
        note_life(context, unhealthy_at=billed_until(context))


def billed_until(context: RunContext) -> float:
    """Now, for the bill: UTC epoch seconds that no wall clock which is set back makes less."""
    return counted(context.machine_facts.clock, read(context.now()))


def note_life(context: RunContext, **moments: Unpack[Moments]) -> None:
    """Records when the machine was seen in which state, for the bill."""
    context.set_rental_facts(life=replace(context.machine_facts.life, **moments))


def note_gone(context: RunContext) -> None:
    """Records that the machine is gone, unless that is known."""
    if not context.machine_facts.life.gone_at:
        note_life(context, gone_at=billed_until(context))


def refresh_address(context: RunContext) -> None:
    """Takes the address that the provider lists now: after a reboot it may be another one. The host key is pinned
    under the instance id, so a stranger at an old address is refused."""
    if not context.provider.paid:
        return
    with suppress(ProviderError):
        listed = held(context)
        known = context.rental.address
        if listed is not None and listed.address is not None and listed.address.host != known.host:
            context.say(f"{listed.instance_id} has a new address: {listed.address.host}")
            context.update_rental(address=replace(known, host=listed.address.host))


def answers(context: RunContext) -> bool:
    """Whether the agent on the machine answers now."""
    try:
        context.agent.ensure()
    except (RemoteError, UserError):
        context.disconnect()
        return False
    return True


def is_gone(context: RunContext) -> bool:
    """Whether the provider says that the machine has ended or was switched off, twice in a row.

    A machine that lists do not show has ended when the provider does not know its id either, although it once did.
    Lists alone count only after minutes: they may lag or be empty.
    """
    until, agreeing = context.now() + UNLISTED_S, 0
    while agreeing < 2:
        found = held(context)
        word = _word(context)
        off = found is not None and found.status == "stopped"  # its provider has it, alive as an id goes
        if word == "terminating" or (word == "alive" and not off) or (found is not None and found.status not in LOST):
            return False
        forgotten = found is None and word == "unknown" and not _life_unseen(context)
        certain = word == "gone" or found is not None or forgotten or context.now() > until
        agreeing = agreeing + 1 if certain else 0
        pause(context, LOOK_EVERY_S / 2)
    return True


def _word(context: RunContext) -> Life | None:
    """What the provider says of the machine's id; None where it does not answer for ids."""
    try:
        return context.provider.find(context.rental.instance_id or "", context.machine_facts.region)
    except NoAnswer:
        return None


def was_preempted(context: RunContext) -> bool:
    """A silent machine: did its provider take it away? One that is just ending is waited for: how it ended is told
    only then, and nothing answers there any more. An API that does not answer says nothing."""
    until, told = context.now() + ENDS_WITHIN_S, 0.0
    try:
        while ending := _is_ending(context):
            if context.now() > until:
                break
            if context.now() - told > TELL_EVERY_S:
                told = context.now()
                context.say(f"{context.rental.instance_id} is ending; waiting until it is gone")
            pause(context, LOOK_EVERY_S / 2)
        return ending or is_gone(context)
    except (NoAnswer, BadCredentials):
        return False


def _is_ending(context: RunContext) -> bool:
    found = held(context)
    return found is not None and found.status == "terminating"

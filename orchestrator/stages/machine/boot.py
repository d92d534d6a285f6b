"""From bought to usable: wait, bounded, until a rented machine is healthy, and give back the one that is not.

Nothing here buys. Every look is noted in the rental: from these notes comes the bill.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TypedDict, Unpack

from orchestrator.core.errors import BadCredentials, NoAnswer, ProviderError, StillBilling, UserError
from orchestrator.core.money.billing import MachineLife
from orchestrator.core.ports import Instance
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.deadline import held

LOOK_EVERY_S = 2.0
FIRST_LOOKS_S = 0.25
"""Between looks at a machine that was bought just now: some are up within a second, and the provider keeps its pace."""
LONGEST_BOOT_MINUTES = 30.0
TELL_EVERY_S = 10.0
GONE = ("terminated", "preempted")
LOST = (*GONE, "stopped")
"""Nothing goes on there; one that is only stopped has still to be ended."""
GIVE_BACK_WITHIN_S = 600.0
TIDY_WITHIN_S = 90.0


class Moments(TypedDict, total=False):
    """Fields of MachineLife."""

    booting_at: float | None
    unhealthy_at: float | None
    active_at: float | None
    alive_at: float | None
    gone_at: float | None


class BadMachine(ProviderError):
    """It was bought and is no good: given back, and another one may be tried."""


def wait_until_active(context: RunContext) -> Instance:
    """The machine once it is active with an address. Raises BadMachine for one that is unhealthy, gone or stuck."""
    usual = context.machine.boot_minutes or LONGEST_BOOT_MINUTES / 2
    longest_s = max(2 * 60 * usual, context.provider.longest_boot_s)
    began, told = context.now(), 0.0
    while True:
        asked = context.now()
        try:
            found = held(context)
        except NoAnswer as error:
            context.emit("seen", f"{error.message}; looking again")
            time.sleep(LOOK_EVERY_S)
            began += context.now() - asked  # an API that is silent says nothing about the machine
            continue
        status = found.status if found else "not listed"
        _note(context, status, asked)
        if found and found.status == "active" and found.address is not None:
            return found
        waited_s = context.now() - began
        if (found and found.status in ("unhealthy", "terminating", *LOST)) or waited_s > longest_s:
            why = f": {found.why}" if found and found.why else ""
            raise BadMachine(f"{context.rental.instance_id} is {status} after {waited_s / 60:.0f} min{why}")
        if context.now() - told > TELL_EVERY_S:
            told = context.now()
            context.say(f"booting {waited_s / 60:.0f}m, usual {usual:.0f}m ({status})")
        time.sleep(min(LOOK_EVERY_S, max(FIRST_LOOKS_S, waited_s / 4)))


def _note(context: RunContext, status: str, asked: float) -> None:
    """For the bill, which may begin right after a look that showed it booting, and before its address is known."""
    if status == "booting":
        note_life(context, booting_at=asked)
    elif status == "active" and context.machine_facts.life.active_at is None:
        note_life(context, active_at=context.now())
    elif status == "unhealthy" and context.machine_facts.life.unhealthy_at is None:
        note_life(context, unhealthy_at=context.now())


def note_life(context: RunContext, **moments: Unpack[Moments]) -> None:
    """Records when the machine was seen in which state, for the bill."""
    context.set_rental_facts(life=replace(context.machine_facts.life, **moments))


def note_gone(context: RunContext) -> None:
    """Records that the machine is gone, unless that is known."""
    if not context.machine_facts.life.gone_at:
        note_life(context, gone_at=context.now())


def is_gone(context: RunContext) -> bool:
    """Whether the provider says, in two lists, that the machine is no more, or was switched off."""
    for _ in range(2):
        found = held(context)
        if found is not None and found.status not in LOST:
            return False
        time.sleep(LOOK_EVERY_S / 2)
    return True


def was_preempted(context: RunContext) -> bool:
    """A silent machine: did its provider take it away? One that is just ending is waited for: how it ended is told
    only then, and nothing answers there any more. An API that does not answer says nothing."""
    until, told = context.now() + GIVE_BACK_WITHIN_S, 0.0
    try:
        while ending := _is_ending(context):
            if context.now() > until:
                break
            if context.now() - told > TELL_EVERY_S:
                told = context.now()
                context.say(f"{context.rental.instance_id} is ending; waiting until it is gone")
            time.sleep(LOOK_EVERY_S / 2)
        return ending or is_gone(context)
    except (NoAnswer, BadCredentials):
        return False


def _is_ending(context: RunContext) -> bool:
    found = held(context)
    return found is not None and found.status == "terminating"


def give_back(context: RunContext) -> None:
    """Releases the machine and asks until two lists agree that it is gone. Raises StillBilling when that takes too
    long or the provider refuses; doing it again goes on."""
    rental = context.rental
    if rental.instance_id is None:
        return
    deadline, gone_in_a_row, trouble = context.now() + GIVE_BACK_WITHIN_S, 0, ""
    while gone_in_a_row < 2:
        if context.now() > deadline:
            raise still_billing(context, trouble or "the provider still lists it")
        try:
            found = held(context)
            if found is None and _may_be_too_new(context):
                context.provider.release(_unlisted(context))
            elif found is None or found.status in GONE:
                gone_in_a_row += 1
                note_gone(context)
            else:
                gone_in_a_row = 0
                note_life(context, alive_at=context.now(), gone_at=None)
                context.provider.release(found)
        except ProviderError as error:
            trouble = error.message
            context.emit("warning", f"release: {trouble}; trying again")
        time.sleep(LOOK_EVERY_S)
    context.say(f"destroyed {rental.instance_id}")


def _may_be_too_new(context: RunContext) -> bool:
    """A machine that no list has ever shown, and that was bought a moment ago, is not gone: lists lag."""
    if context.machine_facts.life != MachineLife():
        return False
    bought = max((intent.created_at for intent in context.ledger.intents(context.rental.id)), default=0.0)
    return context.now() - bought < min(context.provider.settle_s, GIVE_BACK_WITHIN_S / 2)


def _unlisted(context: RunContext) -> Instance:
    rental = context.rental
    region = rental.facts.region
    return Instance(rental.provider, rental.instance_id or "", rental.machine, rental_id=rental.id, region=region)


def tidy(context: RunContext) -> None:
    """Removes what was made beside a machine that is gone. What stays in use costs nothing: it is named, and left."""
    until = context.now() + TIDY_WITHIN_S
    try:
        while (left := context.provider.tidy(context.rental.id)) and context.now() < until:
            time.sleep(LOOK_EVERY_S)
    except (ProviderError, UserError) as error:
        left = [f"{error.message}; gptctl release {context.run_id} does not look again"]
    for each in left:
        context.emit("warning", f"left behind: {each}")


def still_billing(context: RunContext, why: str) -> StillBilling:
    """The error that names the machine, its price and the command to try again."""
    rental = context.rental
    return StillBilling(
        f"{rental.instance_id} on {rental.provider} may still be billing at ${rental.price_per_hour_usd:.2f}/h: {why}",
        f"gptctl release {context.run_id}",
    )

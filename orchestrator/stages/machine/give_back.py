"""Give back: end every machine of a rental by its id, and ask until the provider proves that each is gone.

The ledger knows the id, so no list decides whether an order to end it is sent. What proves the end is in
core/fleet/end_proof.py. A second machine of the rental, which one order may have bought, is found in the lists, ended
and billed like the first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.core.errors import ProviderError, StillBilling, UserError
from orchestrator.core.facts.rental_facts import GivenBack, RentalFactChanges
from orchestrator.core.fleet.end_proof import EndProof, Round
from orchestrator.core.fleet.orphans import ENDED
from orchestrator.core.money.billing import MachineLife
from orchestrator.core.parallel import in_turn
from orchestrator.core.ports import Address, Instance, Life
from orchestrator.ledger.records import Rental
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.first_contact import boot

LOOK_EVERY_S = 2.0
WITHIN_S = 600.0
LOST_WITHIN_S = 180.0
TIDY_WITHIN_S = 90.0


def give_back(context: RunContext) -> None:
    """Ends the rental's machines. Raises StillBilling when one is not proven gone within ten minutes or the provider
    refuses; running it again continues."""
    holders = {node.rental.instance_id: node for node in context.machines if node.rental.instance_id is not None}
    if not holders and not context.ledger.intents(context.rental.id):
        return  # nothing was ever ordered
    proofs = {each: EndProof() for each in (*holders, *_unproven_seconds(context)) if each is not None}
    unproven, trouble, was_listed = _prove(context, holders, proofs, WITHIN_S)
    if unproven:
        raise still_billing(context, unproven, trouble)
    for instance_id in proofs:
        if instance_id in holders:
            boot.note_gone(holders[instance_id])
        else:
            _note_second(context, instance_id)
        context.say(f"destroyed {instance_id}")
    if not was_listed:
        rental_id = context.rental.id
        context.emit("warning", f"{trouble}: gptctl orphans shows whether {rental_id} has another machine")


def order_lost(context: RunContext) -> None:
    """Orders the end of what the rental does not hold any more, a lost node for example. Proves nothing: `end_lost`
    does, once the others train again."""
    for instance_id in filter(None, _unproven_seconds(context)):
        try:
            _order(context, instance_id, None)
        except ProviderError as error:
            context.emit("warning", f"{instance_id} is not ended yet: {error.message}")


def end_lost(context: RunContext) -> None:
    """Ends those machines for sure, within minutes. One that is not proven gone is named; it counts until it is, and
    `release` asks again."""
    lost = [each for each in _unproven_seconds(context) if each is not None]
    proofs = {each: EndProof() for each in lost}
    if not context.provider.paid or not proofs:
        return
    unproven, trouble, _ = _prove(context, {}, proofs, LOST_WITHIN_S)
    for instance_id in proofs.keys() - {*unproven}:
        _note_second(context, instance_id)
        context.say(f"destroyed {instance_id}")
    if unproven:
        context.emit("warning", f"{still_billing(context, unproven, trouble).message}; release asks again")


def _prove(
    context: RunContext, holders: Mapping[str, RunContext], proofs: dict[str, EndProof], within_s: float
) -> tuple[list[str], str, bool]:
    """Orders the end of these, and of second machines that turn up, until each is proven; what is not in time, why, and
    whether a list was seen."""
    deadline, trouble, was_listed = context.now() + within_s, "", False
    while True:
        try:
            listed: list[Instance] | None = list(context.provider.machines())
            was_listed = True
        except ProviderError as error:
            listed, trouble = None, error.message
        for extra in _others_of(context.rental, listed or (), {*proofs, *context.instance_ids}):
            _name_second(context, extra)
            proofs[extra.instance_id] = EndProof()
        for instance_id, proof in proofs.items():
            try:
                ordered = proof.needs_order and _order(context, instance_id, listed)
            except ProviderError as error:  # it may have ended by itself
                ordered, trouble = False, error.message
                context.emit("warning", f"release: {trouble}; trying again")
            holder = holders.get(instance_id, context)
            proofs[instance_id] = _one_round(holder, instance_id, proof, listed, ordered=ordered)
        unproven = [key for key, proof in proofs.items() if not proof.complete]
        if not unproven or context.now() > deadline:
            return unproven, trouble, was_listed
        time.sleep(LOOK_EVERY_S)


def undo(context: RunContext) -> None:
    """Ends its machines, for sure, and forgets them as this rental's; what they cost stays noted. Raises as give_back
    does, and then none is forgotten."""
    context.disconnect()
    give_back(context)
    rental = context.rental
    held = [node.rental for node in context.machines]
    past = (GivenBack(each.instance_id, each.facts.life) for each in held if each.instance_id is not None)
    facts: RentalFactChanges = {
        "given_back": (*rental.facts.given_back, *past), "more": (), "life": MachineLife(), "reached": None,
    }  # fmt: skip
    context.ledger.update_rental(rental.id, instance_id=None, address=Address(), facts=facts)


def end_others(context: RunContext, listed: Iterable[Instance]) -> None:
    """Orders the end of every living machine of this rental but those that it holds: one order may have bought two, and
    an ended one may be back. Proves nothing: release looks for them again."""

    def end(extra: Instance) -> bool:
        _name_second(context, extra)
        return context.provider.release(extra)

    in_turn(_others_of(context.rental, listed, context.instance_ids), end)


def _unproven_seconds(context: RunContext) -> list[str | None]:
    """Second machines that an earlier look found and that nobody saw the end of: no list has to show them again."""
    return [each.instance_id for each in context.machine_facts.given_back if each.life.gone_at is None]


def _name_second(context: RunContext, extra: Instance) -> None:
    context.emit("warning", f"{extra.instance_id} is a second machine of {context.rental.id}: it is ended, too")
    _note_second(context, extra.instance_id, alive=True)


def _others_of(rental: Rental, listed: Iterable[Instance], known: Iterable[str]) -> list[Instance]:
    """Machines of this rental that are alive and that nobody knew of."""
    known = set(known)
    return [
        each
        for each in listed
        if each.rental_id == rental.id and each.instance_id not in known and each.status not in ENDED
    ]


def _shown(instance_id: str, listed: list[Instance] | None) -> Instance | None:
    return next((each for each in listed or () if each.instance_id == instance_id), None)


def _order(context: RunContext, instance_id: str, listed: list[Instance] | None) -> bool:
    """Sends the order to end it; whether the provider took it."""
    known = replace(context.rental.instance, instance_id=instance_id)
    return context.provider.release(_shown(instance_id, listed) or known)


def _one_round(
    context: RunContext, instance_id: str, proof: EndProof, listed: list[Instance] | None, *, ordered: bool
) -> EndProof:
    """Asks for the id, and adds what it and the list say to the proof. ordered: the order to end it was taken."""
    shown = _shown(instance_id, listed)
    word = _word(context, shown or replace(context.rental.instance, instance_id=instance_id))
    alive = shown is not None and shown.status not in boot.GONE
    if instance_id == context.rental.instance_id:
        if alive or word in ("alive", "terminating"):
            boot.note_life(context, alive_at=boot.billed_until(context), gone_at=None)
        elif word is not None:  # an empty list alone ends no bill
            boot.note_gone(context)
    seen = Round(
        context.now(), word, listed=None if listed is None else alive, rows=len(listed or ()), settled=_settled(context)
    )
    return proof.after(seen, ordered=ordered)


def _word(context: RunContext, instance: Instance) -> Life | None:
    """What the provider says of the id; None where it is silent or refuses, an expired login for example: it is asked
    again."""
    try:
        return context.provider.find(instance.instance_id, instance.region)
    except ProviderError:
        return None


def _settled(context: RunContext) -> bool:
    bought = max((intent.created_at for intent in context.ledger.intents(context.rental.id)), default=0.0)
    return context.now() - bought >= min(context.provider.settle_s, WITHIN_S / 2)


def _note_second(context: RunContext, instance_id: str, *, alive: bool = False) -> None:
    """For the bill: it may have cost from the first order of the rental until its end, or nothing at all."""
    now, seen = boot.billed_until(context), context.machine_facts.given_back
    began = min((intent.created_at for intent in context.ledger.intents(context.rental.id)), default=now)
    unknown = MachineLife(booting_at=began, active_at=now, alive_at=now)
    life = next((each.life for each in seen if each.instance_id == instance_id), unknown)
    life = replace(life, alive_at=now if alive else life.alive_at, gone_at=None if alive else now)
    others = (each for each in seen if each.instance_id != instance_id)
    context.set_rental_facts(given_back=(*others, GivenBack(instance_id, life)))


def still_billing(context: RunContext, instance_ids: Iterable[str], why: str) -> StillBilling:
    """The error that names the machines, their price and the command to try again."""
    rental, names = context.rental, list(instance_ids)
    price = rental.each_per_hour_usd * max(1, len(names)) if rental.nodes > 1 else rental.price_per_hour_usd
    return StillBilling(
        f"{', '.join(names)} on {rental.provider} may still be billing at ${price:.2f}/h: "
        f"{why or 'the provider does not confirm that it ended'}",
        f"gptctl release {context.run_id}",
    )


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

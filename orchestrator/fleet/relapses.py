"""Machines that live although their rental was released: back on the books, until they are proven gone.

A look at an account may show such a machine: it came back to life, or one order bought a second one. From that look on
its rental is open again, so that `status`, `cost` and the month's ceiling count it: from its order to its end, which is
the most that it can cost. An order to end it that is proven, by `orphans --reap` or `release`, settles its bill.

Example::

    reopen(ledger, uncounted(ledger, sight.rows), time.time())
    close(ledger, provider, reaped.row, time.time())
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TypeVar

from orchestrator.core.facts.rental_facts import GivenBack, Node, RentalFactChanges
from orchestrator.core.fleet.orphans import UNHEARD, UNLISTED, Orphan
from orchestrator.core.money.billing import MachineLife
from orchestrator.core.ports import Provider
from orchestrator.fleet.known_rentals import known
from orchestrator.ledger.attempts import served
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RENTAL_RELEASED, Rental

Kept = TypeVar("Kept", GivenBack, Node)


def uncounted(ledger: Ledger, rows: Iterable[Orphan]) -> list[Orphan]:
    """Living machines of rentals of this ledger that it does not count up to now.

    An order whose answer is open counts already: the process that sent it finds the machine. What only the ledger says
    of an account that does not answer was not seen.
    """
    seen = [row for row in rows if row.known and row.alive and row.status not in (UNHEARD, UNLISTED)]
    return [
        row
        for row in seen
        if not ledger.intents(row.rental, open_only=True) and row.instance_id not in _counted(ledger.rental(row.rental))
    ]


def reopen(ledger: Ledger, rows: Iterable[Orphan], now: float) -> None:
    """Opens the rentals of these machines, which live although the ledger does not count them (`uncounted`)."""
    for row in rows:
        _reopen(ledger, ledger.rental(row.rental), row.instance_id, now)


def _reopen(ledger: Ledger, rental: Rental, instance_id: str, now: float) -> None:
    # Of an open rental without a machine the driver orders one: what else is alive is a second one.
    held = rental.instance_id or (instance_id if rental.state != RENTAL_OPEN else None)
    ledger.update_rental(
        rental.id,
        state=RENTAL_OPEN,
        released_at=None,
        instance_id=held,
        facts=_alive(ledger, rental, instance_id, now, held=instance_id == held),
    )


def _counted(rental: Rental) -> set[str]:
    """Machines that this rental counts up to now."""
    facts = rental.facts
    if rental.state != RENTAL_OPEN:
        return set()
    lives = {rental.instance_id: facts.life, **{each.instance_id: each.life for each in facts.given_back}}
    lives |= {each.instance_id: each.life for each in facts.more}
    return {instance_id for instance_id, life in lives.items() if instance_id and life.gone_at is None}


def _alive(ledger: Ledger, rental: Rental, instance_id: str, now: float, *, held: bool) -> RentalFactChanges:
    """What was last seen of it alive stays: from there on its cost is an upper bound."""
    ordered_at = min((each.created_at for each in ledger.intents(rental.id)), default=rental.created_at)
    if held:
        life = replace(rental.facts.life, booting_at=rental.facts.life.booting_at or ordered_at, gone_at=None)
        return {"life": life, "bill": None}
    if instance_id in rental.instance_ids:
        return {
            "more": _changed(rental.facts.more, instance_id, lambda life: replace(life, gone_at=None)),
            "bill": None,
        }
    unknown = GivenBack(instance_id, MachineLife(booting_at=ordered_at, active_at=now, alive_at=now))
    past = rental.facts.given_back
    found = next((each for each in past if each.instance_id == instance_id), unknown)
    others = (each for each in past if each.instance_id != instance_id)
    return {"given_back": (*others, GivenBack(instance_id, replace(found.life, gone_at=None))), "bill": None}


def note_unseen(ledger: Ledger, rentals: Iterable[Rental], living: Collection[str], now: float) -> None:
    """Of rentals that nothing needs, machines that the account just denied cost no more, until a look shows them again:
    their end is not proven, so their rentals stay open."""
    for rental in rentals:
        for instance_id in sorted(_counted(rental) - {*living}):
            ledger.update_rental(rental.id, facts=_gone(ledger.rental(rental.id), instance_id, now))


def close(ledger: Ledger, provider: Provider, row: Orphan, now: float) -> None:
    """Notes that a machine of this ledger is proven gone. With the last one of a rental that nothing needs, the rental
    is released, and its bill settled."""
    if not row.known or ledger.rental(row.rental).state != RENTAL_OPEN:
        return
    rental = ledger.rental(row.rental)
    ledger.update_rental(rental.id, facts=_gone(rental, row.instance_id, now))
    rental, runs = ledger.rental(rental.id), served(ledger.rows, [rental.id]).get(rental.id, [])
    if _counted(rental) or not known(rental, runs).over:
        return
    for run in [run for run in runs if run.rental_id == rental.id][:1]:  # with the time in which nobody looked
        ledger.close_stage(ledger.open_stage(run.id, rental.id, "release", rental.price_per_hour_usd))
    nodes = [rental.of_node(node) for node in range(rental.nodes)]
    audited = [provider.ended_at(each.instance) for each in nodes if each.instance_id]
    ledger.settle(rental.id, rental.settled_bill(provider.billing_unit_s, audited))
    ledger.update_rental(rental.id, state=RENTAL_RELEASED, released_at=now)


def _gone(rental: Rental, instance_id: str, now: float) -> RentalFactChanges:
    def ended(life: MachineLife) -> MachineLife:
        return life if life.gone_at is not None else replace(life, gone_at=now)

    facts = rental.facts
    if instance_id == rental.instance_id:
        return {"life": ended(facts.life)}
    past = _changed(facts.given_back, instance_id, ended)
    return {"given_back": past, "more": _changed(facts.more, instance_id, ended)}


def _changed(kept: Iterable[Kept], instance_id: str, change: Callable[[MachineLife], MachineLife]) -> tuple[Kept, ...]:
    """The same machines, with another life of this one."""
    return tuple(replace(each, life=change(each.life)) if each.instance_id == instance_id else each for each in kept)

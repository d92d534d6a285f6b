"""What happened to a run's machine, in a few lines that stay on the screen: refused, rented, survived, destroyed.

Example::

    for line in machine_story(ledger, run):
        print(line)     # rented: 8xA100-40GB in us-east-1 at $15.92/h (i-0123)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from orchestrator.cli.screen.foreign import clean
from orchestrator.core.events import Event
from orchestrator.core.formats import dollars, local_time
from orchestrator.core.ports import UNPAID
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import INTENT_REFUSED, RENTAL_OPEN, Rental, RunRecord

MENDED = ("seen", "warning")
"""Kinds of events that tell of trouble which the run survived."""
LONGEST = 100


def machine_story(ledger: Ledger, run: RunRecord) -> Iterator[str]:
    """What was refused, rented and survived; nothing for a machine of your own that gave no trouble."""
    rental = ledger.rental(run.rental_id) if run.rental_id else None
    if rental is not None and rental.provider not in UNPAID:
        yield from _bought(ledger, rental)
    yield from _mended(ledger.events(run.id))


def machine_end(ledger: Ledger, run: RunRecord) -> str:
    """How the machine ended, and how that is known; empty for a machine of your own."""
    rental = ledger.rental(run.rental_id) if run.rental_id else None
    if rental is None or rental.provider in UNPAID:
        return ""
    if rental.state == RENTAL_OPEN:
        return f"still rented: {rental.held or 'ordered'} at {dollars(rental.price_per_hour_usd)}/h"
    if not rental.instance_id:
        return "destroyed: nothing, for nothing was bought"
    gone_at = rental.facts.life.gone_at
    known = f", gone at {local_time(gone_at)} as {rental.provider} confirmed" if gone_at else ""
    return f"destroyed: {rental.held}{known}"


def _bought(ledger: Ledger, rental: Rental) -> Iterator[str]:
    for intent in ledger.intents(rental.id):
        if intent.state == INTENT_REFUSED:
            where = intent.request.zone or intent.request.region or rental.provider
            yield f"refused: {where}: {_short(intent.answer.error or 'without a reason')}"
    if rental.instance_id:
        where = rental.facts.zone or rental.facts.region
        place = f" in {where}" if where else ""
        yield f"rented: {rental.machine}{place} at {dollars(rental.price_per_hour_usd)}/h ({rental.held})"


def _mended(events: list[Event]) -> Iterator[str]:
    """Each trouble once, with how often it came."""
    for text, times in Counter(_short(event.text) for event in events if event.kind in MENDED and event.text).items():
        yield f"survived: {text}" + (f" ({times} times)" if times > 1 else "")


def _short(text: str) -> str:
    """The first sentence of foreign text, bounded."""
    one = clean(text).replace("\n", " ").split(". ")[0].rstrip(".")
    return one if len(one) <= LONGEST else f"{one[:LONGEST]}..."

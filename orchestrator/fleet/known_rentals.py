"""The rentals of this ledger, as the survey of all machines compares with them: which is over, and what it holds."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.fleet.orphans import KnownRental
from orchestrator.core.ports import UNPAID
from orchestrator.core.states import State
from orchestrator.ledger.attempts import served
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord


def known_rentals(ledger: Ledger) -> dict[str, KnownRental]:
    """Every rental by its id."""
    rentals = ledger.rentals()
    runs = served(ledger.rows, [rental.id for rental in rentals])
    return {rental.id: known(rental, runs.get(rental.id, [])) for rental in rentals}


def known(rental: Rental, runs: list[RunRecord]) -> KnownRental:
    """One of them, with the runs that it served: one that has gone on elsewhere needs it no more."""
    is_open = rental.state == RENTAL_OPEN
    own = [run for run in runs if run.rental_id == rental.id]
    needed = is_open and (not runs or any(run.state != State.ENDED or run.keep for run in own))
    seconds = [each.instance_id for each in rental.facts.given_back if each.life.gone_at is None]
    ids = [*rental.instance_ids, *seconds] if is_open and rental.provider not in UNPAID else []
    ordered_at = rental.facts.life.booting_at or rental.created_at
    base = replace(rental.instance, ends_at=rental.ends_at, launched_at=ordered_at)
    machines = tuple(replace(base, instance_id=each) for each in ids if each is not None)
    return KnownRental(rental.created_at, over=not needed, machines=machines)

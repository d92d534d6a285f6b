"""Machines that are alive although this ledger is done with them: their rental was released, or its runs have ended.

The commands that list runs, hosts or costs ask for them; `gptctl orphans` lists every machine.

It asks only accounts that rented something for such a rental in the last days, and only while there is one.

Example: `left_over(ledger, time.time()).rows` -> [Orphan(instance_id="0920582c7ff0", ...)]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from orchestrator import providers
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import NoAnswer, ProviderError, UserError
from orchestrator.core.fleet.orphans import LEFT_OVER_S, UNHEARD, KnownRental, Orphan
from orchestrator.core.parallel import answers_within
from orchestrator.fleet.accounts import Account, accounts_behind
from orchestrator.fleet.known_rentals import known
from orchestrator.fleet.relapses import note_unseen, reopen, uncounted
from orchestrator.fleet.watcher import Sight, look
from orchestrator.ledger.attempts import served
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord

WITHIN_S = 2.0


@dataclass(frozen=True)
class LeftOver:
    """What still lives. `warnings`: rows of a list that could not be read; `problems`: accounts that did not answer,
    where a rental is open."""

    rows: tuple[Orphan, ...] = ()
    warnings: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)


def left_over(ledger: Ledger, now: float, within_s: float = WITHIN_S) -> LeftOver:
    """Asks the accounts all at once, for within_s at most. Never raises for what they answer. What lives goes back on
    the ledger's books."""
    lately = ledger.rented_since(now - LEFT_OVER_S)
    by_rental = served(ledger.rows, [rental.id for rental in lately])
    runs = [(rental, by_rental.get(rental.id, [])) for rental in lately]
    rentals = {rental.id: known(rental, its_runs) for rental, its_runs in runs}
    over = [(rental, its_runs) for rental, its_runs in runs if rentals[rental.id].over]
    accounts = {each.name: each for each in accounts_behind(_hosts(over))}
    answers = answers_within(within_s, {name: partial(_ask, each, rentals) for name, each in accounts.items()})
    silent = {name: f"no answer within {within_s:.0f} s" for name in accounts if name not in answers}
    rows = tuple(row for _, rows in answers.values() for row in rows)
    reopen(ledger, uncounted(ledger, rows), now)
    is_open = any(rental.state == RENTAL_OPEN for rental, _ in over)
    problems = {name: text for sight, _ in answers.values() for name, text in sight.problems.items()} | silent
    warnings = [line for sight, _ in answers.values() for line in sight.warnings]
    if not problems:
        unseen = [(ledger.rental(rental.id), its_runs) for rental, its_runs in over if its_runs]
        note_unseen(ledger, [rental for rental, _ in unseen], {row.instance_id for row in rows}, now)
        warnings += _unseen(unseen, {row.rental for row in rows})
    return LeftOver(rows, tuple(warnings), problems if is_open else {})


def _unseen(over: Sequence[tuple[Rental, list[RunRecord]]], seen: Collection[str]) -> list[str]:
    """Open rentals whose runs have ended and of which no machine is seen."""
    return [
        f"no machine of rental {rental.id} is seen any more: gptctl release {own[0].id} proves its end and "
        "settles its bill"
        for rental, its_runs in over
        if rental.state == RENTAL_OPEN and rental.id not in seen
        if (own := [run for run in its_runs if run.rental_id == rental.id])
    ]


def _hosts(runs: Sequence[tuple[Rental, list[RunRecord]]]) -> list[HostSpec]:
    """The host entries that these rentals were made with, as their runs keep them."""
    found: dict[str, HostSpec] = {}
    for rental, its_runs in runs:
        if its_runs and its_runs[0].host_data and rental.provider in providers.known():
            found.setdefault(rental.host, HostSpec.from_resolved(its_runs[0].host_data))
    return list(found.values())


def _ask(account: Account, known: Mapping[str, KnownRental]) -> tuple[Sight, list[Orphan]]:
    """What the account's list shows, and which machines of it nothing needs."""
    sight = look([account], known)
    return sight, [row for row in sight.rows if row.over and lives(account, row)]


def lives(account: Account, row: Orphan) -> bool:
    """A list may lag behind the end: the provider's word on the id counts. No answer proves nothing: it may live."""
    if row.status == UNHEARD:
        return True
    try:
        return account.provider.find(row.instance_id, row.region) not in ("gone", "terminating")
    except (NoAnswer, ProviderError, UserError):
        return True

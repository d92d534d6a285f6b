"""Runs of a sweep that have no machine any more: they go on together on another one, under what is left of its ceiling.

A rental says which one it replaces, so that whatever is killed on the way, and however often this is done, the runs of
one machine meet on one other. It must not buy anything; driving a run does.

Example: `revive_taken(home, sweep.id, show)`      # the new rentals, [] where nothing was taken away
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from orchestrator.core.events import Listener
from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.facts.run_facts import QueueFacts, Recovery
from orchestrator.core.money.cost import spent
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import sweeps
from orchestrator.ledger.identity import new_rental_id, new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord
from orchestrator.ledger.run_lock import RunLock, refuse_driven_elsewhere
from orchestrator.runs.new_run import as_requested
from orchestrator.stages.outcome import next_attempt
from orchestrator.wiring import open_context

LEAST_USD = 0.01
"""A rental's ceiling when nothing is left: its guard ends it as soon as it is armed."""
MOST_INTERRUPTIONS = 5
"""How often each run of a sweep goes on elsewhere."""
Show = Callable[[RunRecord], AbstractContextManager[Listener]]


def current(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The run of each arm and seed: one that replaced another stands in its place."""
    found: dict[tuple[str, str], RunRecord] = {}
    for run in runs:
        found[run.labels["arm"], run.labels["seed"]] = run
    return list(found.values())


def driven_here(ledger: Ledger, sweep_id: str) -> list[RunRecord]:
    """All runs of the sweep. Raises RunLocked where another host drives one: its ledger says where they go on."""
    known = sweeps.runs_of(ledger.rows, sweep_id)
    for run in known:
        refuse_driven_elsewhere(run)
    return known


def has_no_machine(ledger: Ledger, run: RunRecord) -> bool:
    """Whether `sweep resume` would let it go on, or begin, on another machine."""
    return is_unbought(ledger, run) or _was_taken(ledger, run)


def revive_unbought(
    ledger: Ledger, sweep_id: str, now: float, *, only: Collection[str] | None = None, by_itself: bool = False
) -> list[RunRecord]:
    """Runs that ended because there was no machine get another one in their place, on the same terms. Those of one
    rental that is gone share one new rental, whose ceiling is what the old one left; where it left nothing, none.

    only, by_itself: as of revive_taken. Raises RunLocked where another host drives the sweep.
    """
    known = driven_here(ledger, sweep_id)
    fresh: dict[str, Rental] = {}
    again: dict[str, RunRecord] = {}
    for run in current(known):
        if not is_unbought(ledger, run) or not _is_meant(ledger, run, only, by_itself):
            continue
        old = _last_in_place_of(ledger, run)
        rental = fresh.get(old.id) or _next(ledger, old, known, now)
        if rental is None:
            continue
        if rental.id != old.id:
            fresh[old.id] = rental
        again[run.id] = _again(run, sweep_id, rental, now)
    revived = [_with_baseline(run, again) for run in again.values()]
    sweeps.add(ledger.rows, None, list(fresh.values()), revived)
    return revived


def _is_meant(ledger: Ledger, run: RunRecord, only: Collection[str] | None, by_itself: bool) -> bool:
    agreed = run.facts.recovery is not None and reached(ledger, run)
    return (only is None or run.rental_id in only) and (agreed or not by_itself)


def is_unbought(ledger: Ledger, run: RunRecord) -> bool:
    """Whether it ended without ever training because no machine could be had, or its machine was gone by then."""
    if not _may_return(run) or ledger.attempts(run.id):
        return False
    return run.outcome is Outcome.PREEMPTED or (run.outcome is Outcome.NEVER_STARTED and not reached(ledger, run))


def _may_return(run: RunRecord) -> bool:
    """Whether it has ended on a machine, and you did not forget it: no list would show what it trains, and costs."""
    return run.state is State.ENDED and run.rental_id is not None and run.facts.forgotten_at is None


def reached(ledger: Ledger, run: RunRecord) -> bool:
    """Whether the machine of this run ever answered."""
    return run.rental_id is not None and ledger.rental(run.rental_id).facts.reached is not None


def _again(run: RunRecord, sweep_id: str, rental: Rental, now: float) -> RunRecord:
    queue = replace(run.facts.queue or QueueFacts(sweep_id), ahead=None, has_started=False)
    return replace(
        run, id=new_run_id(run.recipe, now), state=State.PLANNED, outcome=None, cause="", cause_code=None,
        created_at=now, ended_at=None, stage=None, rental_id=rental.id,
        facts=replace(as_requested(run.facts), queue=queue),
    )  # fmt: skip


def _with_baseline(run: RunRecord, again: dict[str, RunRecord]) -> RunRecord:
    """Its baseline may have another id by now. again: the new runs, by the ids of those that they replace."""
    queue = run.facts.queue
    if queue is None or queue.stop is None or queue.stop.baseline not in again:
        return run
    stop = replace(queue.stop, baseline=again[queue.stop.baseline].id)
    return replace(run, facts=replace(run.facts, queue=replace(queue, stop=stop)))


def revive_taken(
    home: Path, sweep_id: str, show: Show, *, only: Collection[str] | None = None, by_itself: bool = False
) -> list[str]:
    """The runs of a machine that was taken away go on together on another one, whose ceiling is what the old one left:
    each from its newest checkpoint, those that only waited from their beginning. Returns the rentals they are on.

    only: of these rentals. by_itself: only what you agreed to at the start (a spot host), and never in place of a
    machine that could not be had. Raises RunLocked where another gptctl does the same at this moment, or another host
    drives the sweep.
    """
    found: dict[str, None] = {}
    with Ledger.open(home, time.time) as ledger:
        for run in current(driven_here(ledger, sweep_id)):
            if not _was_taken(ledger, run) or not _is_meant(ledger, run, only, by_itself):
                continue
            with RunLock.acquire(home, run.id):
                rental_id = _rejoin(home, ledger, sweep_id, run.id, show)
            if rental_id is not None:
                found[rental_id] = None
    return list(found)


def _was_taken(ledger: Ledger, run: RunRecord) -> bool:
    """Whether its provider took its machine away while it trained or waited there, and that is over and billed; or the
    machine that it was to go on with could not be had."""
    if not _may_return(run) or run.outcome is not Outcome.PREEMPTED:
        return False
    is_over = ledger.rental(run.rental_id or "").state != RENTAL_OPEN or not reached(ledger, run)
    return bool(ledger.attempts(run.id)) and is_over


def _rejoin(home: Path, ledger: Ledger, sweep_id: str, run_id: str, show: Show) -> str | None:
    """The rental that this run is on from now on; None where it stays as it is."""
    run = ledger.run(run_id)
    if not _was_taken(ledger, run):
        return None  # another gptctl was faster
    rental = _next(ledger, _last_in_place_of(ledger, run), sweeps.runs_of(ledger.rows, sweep_id), time.time())
    if rental is None:
        return None
    with show(run) as tell:
        context = open_context(home, ledger, run.id, tell)
        try:
            goes_on = next_attempt.rejoin(context, rental, run.facts.recovery or Recovery(MOST_INTERRUPTIONS))
        finally:
            context.disconnect()
    return ledger.run(run_id).rental_id if goes_on else None


def _last_in_place_of(ledger: Ledger, run: RunRecord) -> Rental:
    """The rental of this run, or the newest that came in its place."""
    replaced = {each.facts.replaces: each for each in ledger.rentals() if each.facts.replaces}
    rental = ledger.rental(run.rental_id or "")
    while rental.id in replaced:
        rental = replaced[rental.id]
    return rental


def _next(ledger: Ledger, last: Rental, served: Sequence[RunRecord], now: float) -> Rental | None:
    """Where its runs go on: there while it is held, or wanted; else a new one for what it left of its ceiling; None
    where it left nothing."""
    if last.state == RENTAL_OPEN:
        return last
    left = _left_of(ledger, last, served)
    return None if left is not None and left <= LEAST_USD else in_place_of(last, left, now)


def in_place_of(last: Rental, ceiling_usd: float | None, now: float) -> Rental:
    """One like it, on which its runs meet: nothing has written it yet."""
    return Rental(
        new_rental_id(last.machine, now), last.provider, last.host, last.machine, now,
        price_per_hour_usd=last.price_per_hour_usd, folder=last.folder,
        facts=RentalFacts(ceiling_usd=ceiling_usd, replaces=last.id),
    )  # fmt: skip


def wanted(ledger: Ledger, runs: Sequence[RunRecord]) -> list[Rental]:
    """The rentals that are gone while runs of the sweep may yet go on in their place."""
    waiting = [run for run in current(runs) if run.state is not State.ENDED or has_no_machine(ledger, run)]
    last = {each.id: each for run in waiting if run.rental_id for each in [_last_in_place_of(ledger, run)]}
    return [each for each in last.values() if each.state != RENTAL_OPEN]


def reserved_usd(ledger: Ledger, rentals: Collection[Rental], served: Sequence[RunRecord]) -> float:
    """What these may still spend, or the machines in their place."""
    return sum(max(0.0, _left_of(ledger, each, served) or 0.0) for each in rentals)


def _left_of(ledger: Ledger, rental: Rental, served: Sequence[RunRecord]) -> float | None:
    """What the runs that it served have left of its ceiling."""
    there = [each for run in served for each in ledger.intervals(run.id) if each.rental_id == rental.id]
    return None if rental.facts.ceiling_usd is None else rental.facts.ceiling_usd - spent(there)

"""A sweep: its runs are put into the queues of its machines, followed to their ends, and can be driven again anywhere.

The machines keep the order and the ceiling; nothing here has to live for them. Driving a sweep twice starts nothing
twice, because every run is its own, and looks first.

Example::

    sweep = new_sweep(ledger, "interventions", terms, requests, ceilings_usd=[90.0], now=time.time())
    drive_sweep(home, sweep.id, show=tell_of, detach=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from orchestrator.core.errors import LinkLost, ProviderError, StillBilling, Unreachable
from orchestrator.core.events import Event, Listener
from orchestrator.core.facts.rental_facts import RentalFacts
from orchestrator.core.facts.run_facts import EarlyStop, QueueFacts, Recovery, RunFacts
from orchestrator.core.money.cost import spent
from orchestrator.core.planning.many_machines.attempts import FRUITLESS_AT_MOST
from orchestrator.core.states import Outcome, State, is_forward, worst
from orchestrator.ledger import sweeps
from orchestrator.ledger.identity import new_rental_id, new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord
from orchestrator.ledger.run_lock import refuse_driven_elsewhere
from orchestrator.ledger.sweeps import Sweep, SweepTerms
from orchestrator.pipeline import drive, outcome_code
from orchestrator.runs.new_run import RunRequest, new_rental, record_of
from orchestrator.runs.stop import stop_run
from orchestrator.stages.outcome import next_attempt
from orchestrator.wiring import open_context

LOST_PAUSES_S = (5.0, 20.0, 60.0)
LEAST_USD = 0.01
"""A rental's ceiling when nothing is left: its guard ends it as soon as it is armed."""
MOST_INTERRUPTIONS = 5
"""How often each run of a sweep goes on elsewhere."""
Show = Callable[[RunRecord], AbstractContextManager[Listener]]


def new_sweep(
    ledger: Ledger, name: str, terms: SweepTerms, requests: Sequence[tuple[RunRequest, int]],
    *, ceilings_usd: Sequence[float | None], now: float,
) -> Sweep:  # fmt: skip
    """Writes the sweep, a rental for each ceiling, and every run, in one transaction. requests: with the machine of
    each, from 0."""
    first = requests[0][0]
    sweep = Sweep(new_run_id(f"sweep-{name}", now), name, first.host.name, now, terms)
    rentals = [_with_ceiling(new_rental(ledger, first, now), usd) for usd in ceilings_usd]
    runs = [record_of(request, rentals[machine].id, now) for request, machine in requests]
    sweeps.add(ledger.rows, sweep, rentals, grouped(sweep, runs))
    return sweep


def add_arms(ledger: Ledger, sweep: Sweep, requests: Sequence[RunRequest], now: float) -> list[RunRecord]:
    """More runs of a sweep, on the machine that is held and has the fewest left; on a new one when none is held."""
    for run in sweeps.runs_of(ledger.rows, sweep.id):
        refuse_driven_elsewhere(run)
    held = held_rentals(ledger, sweep)
    rentals: list[Rental] = []
    if held:
        unfinished = [run.rental_id for run in ledger.runs(unfinished_only=True)]
        rental_id = min(held, key=unfinished.count)
    else:
        rentals = [_with_ceiling(new_rental(ledger, requests[0], now), left_usd(ledger, sweep))]
        rental_id = rentals[0].id
    runs = grouped(sweep, [record_of(request, rental_id, now) for request in requests])
    sweeps.add(ledger.rows, None, rentals, runs)
    return runs


def held_rentals(ledger: Ledger, sweep: Sweep) -> list[str]:
    """The rentals of its runs that are not released."""
    ids = [each.rental_id for each in sweeps.runs_of(ledger.rows, sweep.id) if each.rental_id]
    return [each for each in dict.fromkeys(ids) if ledger.rental(each).state == RENTAL_OPEN]


def left_usd(ledger: Ledger, sweep: Sweep) -> float | None:
    """What its ceiling still allows, LEAST_USD at the least; None without a ceiling."""
    ceiling = sweep.terms.ceiling_usd
    return None if ceiling is None else max(LEAST_USD, ceiling - spent_usd(ledger, sweep))


def spent_usd(ledger: Ledger, sweep: Sweep) -> float:
    """What its runs have cost so far."""
    ids = [run.id for run in sweeps.runs_of(ledger.rows, sweep.id)]
    return sum(sum(each.by_stage.values()) for run_id in ids for each in ledger.spent_by_run(run_id))


def grouped(sweep: Sweep, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs as members of the sweep; each arm ends early by the baseline of its own seed."""
    baselines = {run.labels["seed"]: run.id for run in runs if run.labels["arm"] == sweep.terms.baseline}
    found = []
    for run in runs:
        own, terms = baselines.get(run.labels["seed"]), sweep.terms
        stop = None
        if own is not None and terms.stop_step is not None and terms.stop_margin is not None and own != run.id:
            stop = EarlyStop(own, terms.stop_step, terms.stop_margin)
        group_s = run.facts.queue.group_s if run.facts.queue else None
        queue = QueueFacts(sweep.id, run.labels["arm"], terms.on_failure, stop, group_s)
        found.append(replace(run, facts=replace(run.facts, queue=queue)))
    return found


def _with_ceiling(rental: Rental, usd: float | None) -> Rental:
    return replace(rental, facts=replace(rental.facts, ceiling_usd=usd, ceiling_h=None))


def drive_sweep(home: Path, sweep_id: str, show: Show, *, detach: bool, rental_id: str | None = None) -> int:
    """Puts into the queues what is not there yet, then, unless detached, follows every run to its end, and on a spot
    host to its end on other machines. Returns the worst exit code of its runs. rental_id: only that machine's.

    Raises ProviderError when a machine cannot be had: its runs stay as they are for `sweep resume`.
    """
    if rental_id is None:  # else two machines' drivers would each put others in the place of the same runs
        with Ledger.open(home, time.time) as ledger:
            revive_unbought(ledger, sweep_id, time.time())
        revive_taken(home, sweep_id, show)
    driven = None if rental_id is None else {rental_id}
    best, fruitless = -1, 0
    while True:
        for run in _runs(home, sweep_id, driven):
            if not is_forward(State.TRAINING, run.state):
                _drive_to_queue(home, run, show)
                _refuse_without_machine(home, run)
        code, has_left = (0, True) if detach else _follow_all(home, _runs(home, sweep_id, driven), show)
        reached = _progress(_runs(home, sweep_id, driven))
        best, fruitless = max(best, reached), 0 if reached > best else fruitless + 1
        if has_left or fruitless >= FRUITLESS_AT_MOST:  # else machines that are taken at once would be bought for ever
            return code
        fresh = revive_taken(home, sweep_id, show, only=driven, by_itself=True)
        if not fresh:
            return code
        driven = driven and {*driven, *fresh}


def _progress(runs: Sequence[RunRecord]) -> int:
    """Grows with every checkpoint that is safe, and with every run that finishes."""
    return sum(run.safe_step or 0 for run in runs) + sum(run.outcome is Outcome.FINISHED for run in runs)


def _follow_all(home: Path, runs: Sequence[RunRecord], show: Show) -> tuple[int, bool]:
    """The worst exit code, and whether you left before the end."""
    code = 0
    for run in runs:
        if run.state is State.ENDED:
            code = worst(code, outcome_code(run))
            continue
        left: list[Event] = []
        code = worst(code, _drive(home, run, show, until=None, left=left))
        if left:
            return code, True
    return code, False


def _drive_to_queue(home: Path, run: RunRecord, show: Show) -> None:
    """A machine that trains may be too busy to answer in time: what the link lost is done again, a few times."""
    for pause_s in (*LOST_PAUSES_S, None):
        try:
            _drive(home, run, show, until="launch")
            return
        except (LinkLost, Unreachable, StillBilling) as error:
            lost = isinstance(error.__cause__ if isinstance(error, StillBilling) else error, LinkLost | Unreachable)
            if pause_s is None or not lost:
                raise
            time.sleep(pause_s)


def _drive(home: Path, run: RunRecord, show: Show, *, until: str | None, left: list[Event] | None = None) -> int:
    with show(run) as tell:

        def listen(event: Event) -> None:
            if event.kind == "detached" and left is not None:
                left.append(event)
            tell(event)

        return drive(home, run.id, listen, until=until)


def _runs(home: Path, sweep_id: str, rentals: Collection[str] | None = None) -> list[RunRecord]:
    with Ledger.open(home, time.time) as ledger:
        found = current(sweeps.runs_of(ledger.rows, sweep_id))
        return [run for run in found if rentals is None or run.rental_id in rentals]


def _refuse_without_machine(home: Path, run: RunRecord) -> None:
    """No machine could be had for this run: the next one would fail the same way."""
    with Ledger.open(home, time.time) as ledger:
        found = ledger.run(run.id)
        if _is_unbought(ledger, found):
            raise ProviderError(
                f"{run.id}: {found.cause}", f"gptctl sweep resume {run.labels.get('sweep', '')}".strip()
            )


def _is_unbought(ledger: Ledger, run: RunRecord) -> bool:
    """Whether it ended without ever training because no machine could be had, or its machine was gone by then."""
    if run.state is not State.ENDED or ledger.attempts(run.id) or run.rental_id is None:
        return False
    reached = ledger.rental(run.rental_id).facts.reached is not None
    return run.outcome is Outcome.PREEMPTED or (run.outcome is Outcome.NEVER_STARTED and not reached)


def current(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The run of each arm and seed: one that replaced another stands in its place."""
    found: dict[tuple[str, str], RunRecord] = {}
    for run in runs:
        found[run.labels["arm"], run.labels["seed"]] = run
    return list(found.values())


def revive_unbought(ledger: Ledger, sweep_id: str, now: float) -> list[RunRecord]:
    """Runs that ended because there was no machine get another one in their place, on the same terms. Those of one
    rental that is gone share one new rental, whose ceiling is what the old one left; where it left nothing, none."""
    known = sweeps.runs_of(ledger.rows, sweep_id)
    fresh: dict[str, Rental] = {}
    again = []
    for run in current(known):
        if not _is_unbought(ledger, run):
            continue
        old = ledger.rental(run.rental_id or "")
        if old.state != RENTAL_OPEN and old.id not in fresh:
            left = _left_of(ledger, old, [each for each in known if each.rental_id == old.id])
            if left is not None and left <= LEAST_USD:
                continue
            fresh[old.id] = _replacement(old, left, now)
        rental_id = fresh[old.id].id if old.id in fresh else old.id
        queue = replace(run.facts.queue or QueueFacts(sweep_id), ahead=None, has_started=False)
        facts = RunFacts(
            made_by=run.facts.made_by, accept_new_host_key=run.facts.accept_new_host_key, wait=run.facts.wait,
            home_boxes=run.facts.home_boxes, queue=queue, recovery=run.facts.recovery,
        )  # fmt: skip
        again.append(
            replace(
                run, id=new_run_id(run.recipe, now), state=State.PLANNED, outcome=None, cause="", cause_code=None,
                created_at=now, ended_at=None, stage=None, rental_id=rental_id, facts=facts,
            )
        )  # fmt: skip
    sweeps.add(ledger.rows, None, list(fresh.values()), again)
    return again


def revive_taken(
    home: Path, sweep_id: str, show: Show, *, only: Collection[str] | None = None, by_itself: bool = False
) -> list[str]:
    """The runs of a machine that was taken away go on together on another one, whose ceiling is what the old one left:
    each from its newest checkpoint, those that only waited from their beginning. Returns the new rentals.

    only: of these rentals. by_itself: only what you agreed to at the start (a spot host).
    """
    with Ledger.open(home, time.time) as ledger:
        known = sweeps.runs_of(ledger.rows, sweep_id)
        fresh: dict[str, Rental] = {}
        for run in current(known):
            old = ledger.rental(run.rental_id or "") if _was_taken(ledger, run) else None
            if old is None or (only is not None and old.id not in only) or (by_itself and run.facts.recovery is None):
                continue
            left = _left_of(ledger, old, known)
            if left is not None and left <= LEAST_USD:
                continue
            rental = fresh.setdefault(old.id, _replacement(old, left, time.time()))
            with show(run) as tell:
                context = open_context(home, ledger, run.id, tell)
                try:
                    next_attempt.rejoin(context, rental, run.facts.recovery or Recovery(MOST_INTERRUPTIONS))
                finally:
                    context.disconnect()
        written = {rental.id for rental in ledger.rentals()}
        return [rental.id for rental in fresh.values() if rental.id in written]


def _was_taken(ledger: Ledger, run: RunRecord) -> bool:
    """Whether its provider took its machine away while it trained or waited there, and that is over and billed."""
    if run.state is not State.ENDED or run.outcome is not Outcome.PREEMPTED or run.rental_id is None:
        return False
    return bool(ledger.attempts(run.id)) and ledger.rental(run.rental_id).state != RENTAL_OPEN


def _left_of(ledger: Ledger, rental: Rental, served: Sequence[RunRecord]) -> float | None:
    """What the runs that it served have left of its ceiling."""
    there = [each for run in served for each in ledger.intervals(run.id) if each.rental_id == rental.id]
    return None if rental.facts.ceiling_usd is None else rental.facts.ceiling_usd - spent(there)


def _replacement(old: Rental, ceiling_usd: float | None, now: float) -> Rental:
    return Rental(
        new_rental_id(old.machine, now), old.provider, old.host, old.machine, now,
        price_per_hour_usd=old.price_per_hour_usd, folder=old.folder, facts=RentalFacts(ceiling_usd=ceiling_usd),
    )  # fmt: skip


def stop_runs(home: Path, runs: Sequence[RunRecord], show: Show) -> int:
    """Ends these runs, what waits first and the last first, so that none starts meanwhile."""
    code = 0

    def waits_last(run: RunRecord) -> tuple[bool, int]:
        return run.facts.queue is None or run.facts.queue.has_started, -runs.index(run)

    for run in sorted(runs, key=waits_last):
        if run.state is not State.ENDED:
            with show(run) as tell:
                code = worst(code, stop_run(home, run.id, tell))
    return code

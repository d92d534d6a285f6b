"""A sweep: its runs are put into the queues of its machines, followed to their ends, and can be driven again anywhere.

The machines keep the order and the ceiling; nothing here has to live for them. Driving a sweep twice starts nothing
twice, because every run is its own, and looks first.

Example::

    sweep = new_sweep(ledger, "interventions", terms, requests, ceilings_usd=[90.0], now=time.time())
    drive_sweep(home, sweep.id, show=tell_of, detach=True)
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.core.errors import GptctlError, LinkLost, ProviderError, RunLocked, StillBilling, Unreachable
from orchestrator.core.events import Event
from orchestrator.core.facts.run_facts import EarlyStop, QueueFacts
from orchestrator.core.money.cost import spent
from orchestrator.core.parallel import in_turn
from orchestrator.core.planning.many_machines.attempts import FRUITLESS_AT_MOST
from orchestrator.core.states import Outcome, State, is_forward, worst
from orchestrator.ledger import sweeps
from orchestrator.ledger.identity import new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord
from orchestrator.ledger.sweeps import Sweep, SweepTerms
from orchestrator.pipeline import drive, outcome_code
from orchestrator.runs.new_run import RunRequest, new_rental, record_of
from orchestrator.runs.stop import stop_run
from orchestrator.runs.sweep_revival import (
    LEAST_USD,
    Show,
    current,
    in_place_of,
    is_unbought,
    reached,
    reserved_usd,
    revive_taken,
    revive_unbought,
    wanted,
)

LOST_PAUSES_S = (5.0, 20.0, 60.0)
LOCKED_WITHIN_S, LOCKED_PAUSE_S = 60.0, 1.0
"""An arm that another gptctl adds at this moment is in its queue within this time."""


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
    """More runs of a sweep, on the machine that is held and has the fewest left; on a new one when none is held, where
    those that wait for a machine meet them: of one ceiling no two machines get the same part.

    Raises RunLocked where another host drives the sweep.
    """
    revive_unbought(ledger, sweep.id, now)
    known, rentals = current(sweeps.runs_of(ledger.rows, sweep.id)), list[Rental]()
    held = held_rentals(ledger, sweep)
    if held:
        unfinished = [run.rental_id for run in ledger.runs(unfinished_only=True)]
        rental_id = min(held, key=unfinished.count)
    else:
        rentals = [_another(ledger, sweep, requests[0], now)]
        rental_id = rentals[0].id
    beside = _baselines(sweep, known) if sweep.terms.stop_step is not None else {}
    runs = []
    for request in requests:
        baseline = beside.get(request.labels["seed"])
        there = baseline.rental_id if baseline is not None else None
        runs.append(record_of(request, there if there in held else rental_id, now))
    runs = grouped(sweep, runs, known)
    sweeps.add(ledger.rows, None, rentals, runs, holds_none=not held)
    return runs


def _another(ledger: Ledger, sweep: Sweep, request: RunRequest, now: float) -> Rental:
    """For what the ceiling leaves beside what machines in place of others may spend."""
    runs, left = sweeps.runs_of(ledger.rows, sweep.id), left_usd(ledger, sweep)
    gone = sorted(wanted(ledger, runs), key=lambda each: reserved_usd(ledger, [each], runs))
    rental = in_place_of(gone.pop(), None, now) if gone else new_rental(ledger, request, now)
    return _with_ceiling(rental, left and max(LEAST_USD, left - reserved_usd(ledger, gone, runs)))


def _baselines(sweep: Sweep, runs: Sequence[RunRecord]) -> dict[str, RunRecord]:
    """Of the sweep, by their seeds."""
    return {run.labels["seed"]: run for run in runs if run.labels["arm"] == sweep.terms.baseline}


def held_rentals(ledger: Ledger, sweep: Sweep) -> list[str]:
    """The rentals of its runs that are not released."""
    ids = [each.rental_id for each in sweeps.runs_of(ledger.rows, sweep.id) if each.rental_id]
    return [each for each in dict.fromkeys(ids) if ledger.rental(each).state == RENTAL_OPEN]


def left_usd(ledger: Ledger, sweep: Sweep) -> float | None:
    """What its ceiling still allows, LEAST_USD at the least; None without a ceiling."""
    ceiling = sweep.terms.ceiling_usd
    return None if ceiling is None else max(LEAST_USD, ceiling - spent_usd(ledger, sweep))


def spent_usd(ledger: Ledger, sweep: Sweep) -> float:
    """What its runs have cost so far, on all their machines."""
    return sum(spent_by_machine(ledger, sweep).values())


def spent_by_machine(ledger: Ledger, sweep: Sweep) -> dict[str, float]:
    """What its runs have cost so far, by rental, in the order in which these were agreed to: those that were taken away
    or replaced too, and one that holds nothing yet."""
    runs = sweeps.runs_of(ledger.rows, sweep.id)
    spent_on = {run.rental_id: 0.0 for run in runs if run.rental_id}
    intervals = ledger.all_intervals([run.id for run in runs])
    for each in [interval for run in runs for interval in intervals.get(run.id, ())]:
        if each.rental_id is not None:  # spent on no machine: it costs nothing
            spent_on[each.rental_id] = spent_on.get(each.rental_id, 0.0) + spent([each])
    return dict(sorted(spent_on.items(), key=lambda item: ledger.rental(item[0]).created_at))


def grouped(sweep: Sweep, runs: Sequence[RunRecord], known: Sequence[RunRecord] = ()) -> list[RunRecord]:
    """The runs as members of the sweep; each arm ends early by the baseline of its own seed, which may be known."""
    baselines = _baselines(sweep, [*known, *runs])
    found = []
    for run in runs:
        own, terms = baselines.get(run.labels["seed"]), sweep.terms
        stop = None
        if own is not None and terms.stop_step is not None and terms.stop_margin is not None and own.id != run.id:
            stop = EarlyStop(own.id, terms.stop_step, terms.stop_margin)
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
                left_code = _drive_to_queue(home, run, show)
                if _was_left(home, run):
                    return left_code
                _refuse_without_machine(home, run)
        code, has_left = (0, True) if detach else _follow_all(home, _runs(home, sweep_id, driven), show)
        if not has_left and any(run.state is not State.ENDED for run in _runs(home, sweep_id, driven)):
            continue  # arms were added meanwhile
        reached = _progress(_runs(home, sweep_id, driven))
        best, fruitless = max(best, reached), 0 if reached > best else fruitless + 1
        if has_left or fruitless >= FRUITLESS_AT_MOST:  # else machines that are taken at once would be bought for ever
            return code
        fresh = _go_on_elsewhere(home, sweep_id, driven, show)
        if not fresh:
            return code
        driven = driven and {*driven, *fresh}


def _go_on_elsewhere(home: Path, sweep_id: str, driven: Collection[str] | None, show: Show) -> set[str]:
    """The rentals on which runs go on by themselves, of a machine that was taken away while it trained or was made
    ready."""
    taken = revive_taken(home, sweep_id, show, only=driven, by_itself=True)
    with Ledger.open(home, time.time) as ledger:
        unbought = revive_unbought(ledger, sweep_id, time.time(), only=driven, by_itself=True)
    return {*taken, *(run.rental_id for run in unbought if run.rental_id)}


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


def _was_left(home: Path, run: RunRecord) -> bool:
    """Whether you left before it was in its queue: the next one is not begun either."""
    with Ledger.open(home, time.time) as ledger:
        return not is_forward(State.TRAINING, ledger.run(run.id).state)


def _drive_to_queue(home: Path, run: RunRecord, show: Show) -> int:
    """A machine that trains may be too busy to answer in time: what the link lost is done again, a few times."""
    for pause_s in (*LOST_PAUSES_S, None):
        try:
            return _drive(home, run, show, until="launch")
        except (LinkLost, Unreachable, StillBilling) as error:
            lost = isinstance(error.__cause__ if isinstance(error, StillBilling) else error, LinkLost | Unreachable)
            if pause_s is None or not lost:
                raise
            time.sleep(pause_s)
    raise AssertionError("the last pause is None")


def _drive(home: Path, run: RunRecord, show: Show, *, until: str | None, left: list[Event] | None = None) -> int:
    """Raises RunLocked where another gptctl drives it for longer than putting it into the queue takes."""
    ends = time.monotonic() + LOCKED_WITHIN_S
    while True:
        try:
            return _drive_now(home, run, show, until=until, left=left)
        except RunLocked:
            if time.monotonic() >= ends or _is_driven_elsewhere(home, run):
                raise
            time.sleep(LOCKED_PAUSE_S)


def _is_driven_elsewhere(home: Path, run: RunRecord) -> bool:
    with Ledger.open(home, time.time) as ledger:
        return ledger.run(run.id).facts.driven_by is not None


def _drive_now(home: Path, run: RunRecord, show: Show, *, until: str | None, left: list[Event] | None) -> int:
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
    """No machine could be had for this run, or it was taken away before this run was in its queue, and nobody agreed to
    another one: the next run would fail the same way."""
    with Ledger.open(home, time.time) as ledger:
        found = ledger.run(run.id)
        if found.state is not State.ENDED or found.outcome not in (Outcome.PREEMPTED, Outcome.NEVER_STARTED):
            return
        if not reached(ledger, found) or (is_unbought(ledger, found) and found.facts.recovery is None):
            raise ProviderError(
                f"{run.id}: {found.cause}", f"gptctl sweep resume {run.labels.get('sweep', '')}".strip()
            )


def stop_runs(home: Path, runs: Sequence[RunRecord], show: Show) -> int:
    """Ends these runs, what waits first and the last first, so that none starts meanwhile. One that does not answer
    keeps no other one training.

    Raises the first StillBilling, else the first error, once each was asked.
    """

    def waits_last(run: RunRecord) -> tuple[bool, int]:
        return run.facts.queue is None or run.facts.queue.has_started, -runs.index(run)

    def stop(run: RunRecord) -> int:
        with show(run) as tell:
            try:
                return stop_run(home, run.id, tell)
            except GptctlError as error:
                tell(Event("warning", time.time(), text=f"{error.message}. Next: {error.hint}"))
                raise

    unfinished = [run for run in sorted(runs, key=waits_last) if run.state is not State.ENDED]
    return worst(0, *in_turn(unfinished, stop))

"""`gptctl sweep`: plans, starts, shows and changes many runs of one question under one ceiling.

runs/sweeps.py does it; here you are asked, and see how it goes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.cli.driver.driver import hand_over
from orchestrator.cli.driver.on_the_driver import refuse_rented
from orchestrator.cli.failures import leave_on_signals
from orchestrator.cli.machines.track import start_tracking
from orchestrator.cli.machines.watcher import warn_if_unwatched
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.plans.plan import planned
from orchestrator.cli.runs import compare
from orchestrator.cli.screen import screen
from orchestrator.cli.sweeps.plan import Planned, prepared, show_plan
from orchestrator.cli.sweeps.requests import Go, beginnings, check_stores, recovery, request, requests_of
from orchestrator.cli.sweeps.show import show
from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.config.recipe import Limits, load_recipe
from orchestrator.core.config.settings import load_settings
from orchestrator.core.config.sweep import Arm
from orchestrator.core.errors import LimitReached, UserError
from orchestrator.core.events import Listener
from orchestrator.core.money.calendar import month_start
from orchestrator.core.planning.limits import check_guard, check_month, check_plan
from orchestrator.core.planning.many_machines.sweep_plan import check_sweep, shares_usd
from orchestrator.core.planning.plan import Plan
from orchestrator.core.states import Outcome, State, worst
from orchestrator.ledger import sweeps
from orchestrator.ledger.bills.fetch_rates import fetch_rates
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.ledger.sweeps import Sweep, SweepTerms
from orchestrator.runs.refresh import look
from orchestrator.runs.sweep_revival import LEAST_USD, MOST_INTERRUPTIONS, current, revive_taken, revive_unbought
from orchestrator.runs.sweeps import add_arms, drive_sweep, held_rentals, left_usd, new_sweep, stop_runs

ANSWER_WITHIN_S = 5.0
"""One machine is asked about each of its runs."""


def run(path: Path, host: str, go: Go, inventory: Path | None, *, yes: bool, as_json: bool) -> int:
    """Plans, asks, writes everything down at once, and drives it. The same file again continues it."""
    with open_ledger() as ledger:
        found, hosts = prepared(ledger, path, host, go.machines, inventory), load_inventory(inventory, ledger.home)
        driver = hosts.host(go.driver) if go.driver is not None else None
        known = _unfinished(ledger, found)
        if known is not None:
            screen.talk(f"sweep {known.name} is under way: continuing it")
            return _started(ledger, known, driver, go, as_json=as_json)
        with redirect_stdout(sys.stderr):  # the result is what the sweep comes to
            show_plan(found)
        check_sweep(found.file.name, found.plan)
        if found.host.spot:
            screen.talk(f"taken    its runs go on elsewhere under this ceiling, {MOST_INTERRUPTIONS} times at most")
        first = found.arms[0][1]
        if driver is not None:
            refuse_rented(driver)
        check_guard(first, found.host, unguarded=go.unguarded)
        warn_if_unwatched(ledger.home, found.host)
        _check_month(ledger, _as_one(found))
        begun = beginnings(ledger, hosts, go, found.arms)
        check_stores(ledger, found, hosts, go)
        if not (yes or screen.ask(f"Start {len(found.arms)} runs on {host}?", _command())):
            screen.talk("nothing was started")
            return 0
        sweep = new_sweep(
            ledger, found.file.name, _terms(found), requests_of(found, go, hosts, begun),
            ceilings_usd=shares_usd(found.plan), now=time.time(),
        )  # fmt: skip
        return _started(ledger, sweep, driver, go, as_json=as_json)


def _started(ledger: Ledger, sweep: Sweep, driver: HostSpec | None, go: Go, *, as_json: bool) -> int:
    """Driven there where you asked for that, also when the last command was killed before it had handed it over."""
    if driver is None:
        return _go_on(ledger, sweep, detach=go.detach, as_json=as_json)
    members = [run.id for run in sweeps.runs_of(ledger.rows, sweep.id)]
    hand_over(ledger, members, driver, accept_new=go.accept_new_host_key)
    if as_json:
        show(ledger, sweep, as_json=True)
    return 0


def _as_one(found: Planned) -> Plan:
    """The plan of its first arm, with the dollars of all."""
    first = found.arms[0][1]
    usd = min(each for each in (found.plan.cost_usd or 0.0, found.plan.ceiling_usd) if each is not None)
    return replace(first, cost_usd=replace(first.cost_usd, total=usd), recipe=f"sweep {found.file.name}")


def _check_month(ledger: Ledger, whole: Plan) -> None:
    limit = load_settings(ledger.home).limits.max_usd_per_month
    check_month(whole, ledger.spend_since(month_start(time.time())), limit)


def _terms(found: Planned) -> SweepTerms:
    stop = found.file.stop
    return SweepTerms(
        baseline=found.arms[0][0].name, ceiling_usd=found.plan.ceiling_usd, on_failure=found.file.on_failure,
        stop_step=stop.step if stop else None, stop_margin=stop.margin if stop else None, digest=_digest(found),
        asked=_asked(found),
    )  # fmt: skip


def _digest(found: Planned) -> str:
    text = json.dumps([[arm.name, arm.seed, arm.recipe.digest] for arm, _ in found.arms])
    return hashlib.sha256(text.encode()).hexdigest()


def _asked(found: Planned) -> dict[str, str]:
    """As it was typed: a ceiling that gptctl works out moves with prices and with what it measures."""
    stop, limits = found.file.stop, found.file.limits
    words = {
        "host": found.host.name, "on_failure": found.file.on_failure,
        **{f"stop.{key}": value for key, value in (stop.model_dump() if stop else {}).items()},
        **{f"limits.{key}": value for key, value in limits.model_dump().items()},
    }  # fmt: skip
    return {key: str(value) for key, value in words.items() if value is not None}


def _unfinished(ledger: Ledger, found: Planned) -> Sweep | None:
    """The sweep of this name that is under way. Raises UserError if its arms or its terms are others."""
    for sweep in sweeps.listed(ledger.rows):
        runs = current(sweeps.runs_of(ledger.rows, sweep.id))
        unfinished = [run for run in runs if run.state is not State.ENDED]
        if sweep.name == found.file.name and unfinished:
            if not (others := _others(sweep, runs, found)):
                return sweep
            raise UserError(
                f"sweep {sweep.name} is under way ({len(unfinished)} runs unfinished) on other terms: {others}",
                f"gptctl sweep resume {sweep.name} goes on as agreed, gptctl sweep add {sweep.name} RECIPE adds one; "
                f"for the new terms: gptctl sweep stop {sweep.name} first, or another name in the file",
            )
    return None


def _others(sweep: Sweep, runs: Sequence[RunRecord], found: Planned) -> str:
    """What the file and the words now say otherwise than what was agreed to; empty where nothing."""
    now = _asked(found)
    agreed = sweep.terms.asked or {**now, "host": sweep.host}
    keys = [key for key in {**agreed, **now} if agreed.get(key) != now.get(key)]
    differ = [f"{key} {agreed.get(key, 'none')}, not {now.get(key, 'none')}" for key in keys]
    if sweep.terms.digest != _digest(found):
        there = {(run.labels["arm"], run.labels["seed"], run.recipe_digest) for run in runs}
        same = there == {(arm.name, str(arm.seed), arm.recipe.digest) for arm, _ in found.arms}
        differ.append("its arms in another order" if same else "other arms")
    return "; ".join(differ)


def resume(wanted: str | None, *, rental: str | None, detach: bool, as_json: bool) -> int:
    """Puts into the queues what is missing there, and follows every run to its end."""
    with open_ledger() as ledger:
        return _go_on(ledger, sweeps.find(ledger.rows, wanted), rental=rental, detach=detach, as_json=as_json)


def _go_on(ledger: Ledger, sweep: Sweep, *, detach: bool, as_json: bool, rental: str | None = None) -> int:
    leave_on_signals()
    if rental is None:
        revive_unbought(ledger, sweep.id, time.time())
        revive_taken(ledger.home, sweep.id, partial(_shown, ledger.home))
    runs = current(sweeps.runs_of(ledger.rows, sweep.id))
    machines = list(dict.fromkeys(run.rental_id for run in runs if run.state is not State.ENDED))
    if rental is None and len(machines) > 1:
        code = _side_by_side(sweep, [each for each in machines if each], detach=detach)
    else:
        code = drive_sweep(ledger.home, sweep.id, partial(_shown, ledger.home), detach=detach, rental_id=rental)
    if rental is None:
        show(ledger, sweep, as_json=as_json)
    return code


def _shown(home: Path, run: RunRecord) -> AbstractContextManager[Listener]:
    start_tracking(home, run.id)
    return screen.show_events(_title(run))


def _side_by_side(sweep: Sweep, rentals: Sequence[str], *, detach: bool) -> int:
    """One process for each machine. Ctrl-C, or the end of this one's terminal, tells each once to leave, which it does
    in order."""
    argv = [sys.executable, "-m", "orchestrator", "sweep", "resume", sweep.id, *(["-d"] if detach else [])]
    children = [
        subprocess.Popen([*argv, "--rental", each], stdin=subprocess.DEVNULL, process_group=0) for each in rentals
    ]
    try:
        codes = [child.wait() for child in children]
    except KeyboardInterrupt:
        for child in children:
            child.terminate()
        codes = [child.wait() for child in children]
    return worst(*codes)


def _title(run: RunRecord) -> str:
    return f"{run.labels.get('arm', run.recipe)} (seed {run.labels.get('seed', '?')}): {run.id} on {run.host}"


def status(wanted: str | None, *, as_json: bool) -> int:
    """One row per arm, and the money of all."""
    with open_ledger() as ledger:
        sweep = sweeps.find(ledger.rows, wanted)
        unfinished = [run for run in current(sweeps.runs_of(ledger.rows, sweep.id)) if run.state is not State.ENDED]
        look(ledger.home, unfinished, deadline_s=ANSWER_WITHIN_S)
        show(ledger, sweep, as_json=as_json)
        return 0


def add(wanted: str, recipe: str, sets: list[str], go: Go, inventory: Path | None, *, yes: bool, as_json: bool) -> int:
    """One more arm, with every seed of the sweep, once you agree to its cost; it waits behind what is there."""
    with open_ledger() as ledger:
        sweep = sweeps.find(ledger.rows, wanted)
        known = current(sweeps.runs_of(ledger.rows, sweep.id))
        hosts = load_inventory(inventory, ledger.home)
        host = hosts.host(sweep.host)
        seeds = list(dict.fromkeys(run.labels["seed"] for run in known))
        arms = [_arm(recipe, sets, int(seed)) for seed in seeds]
        there = {run.recipe_digest for run in known}
        if any(arm.recipe.digest in there for arm in arms):
            raise UserError(
                f"sweep {sweep.name} has {arms[0].name} already",
                f"gptctl sweep status {sweep.name}, or gptctl sweep resume {sweep.name} where it is not in a queue yet",
            )
        fetches = fetch_rates(ledger.rentals())
        plan = planned(arms[0].recipe, host, ledger.rates(), Limits(), fetches=fetches)[0]
        check_plan(plan)
        check_guard(plan, host, unguarded=go.unguarded)
        begun = beginnings(ledger, hosts, go, [(arms[0], plan)])[arms[0].name]
        if not (yes or screen.ask(cost_of_adding(ledger, sweep, plan, len(arms)), _command())):
            screen.talk("nothing was added")
            return 0
        group_s = next((run.facts.queue.group_s for run in known if run.facts.queue is not None), None)
        own = partial(request, sweep.name, host, go=go, known=hosts, begun=begun, group_s=group_s)
        requests = [own(arm, plan, recovery=recovery(host, plan)) for arm in arms]
        add_arms(ledger, sweep, requests, time.time())
        return _go_on(ledger, sweep, detach=go.detach, as_json=as_json)


def cost_of_adding(ledger: Ledger, sweep: Sweep, plan: Plan, runs: int) -> str:
    """The question. Raises LimitReached where the sweep's or the month's ceiling leaves no room."""
    usd, left = (plan.cost_usd.total or 0.0) * runs, left_usd(ledger, sweep)
    if plan.paid and left is not None and left <= LEAST_USD:
        raise LimitReached(
            f"sweep {sweep.name} has spent its ceiling of ${sweep.terms.ceiling_usd:.2f}",
            f"put the arm into a sweep file of its own: gptctl sweep run FILE --host {sweep.host}",
        )
    _check_month(ledger, replace(plan, cost_usd=replace(plan.cost_usd, total=usd), recipe=f"sweep {sweep.name}"))
    machine = "" if held_rentals(ledger, sweep) or not plan.paid else "rents another machine; "
    room = f"; ${left:.2f} of the ceiling is left" if left is not None else ""
    return f"Add {runs} runs of {plan.recipe}? That {machine}costs about ${usd:.2f}{room}."


def _arm(recipe: str, sets: list[str], seed: int) -> Arm:
    found = load_recipe(recipe, [*sets, f"train.seed={seed}"])
    return Arm(",".join([found.name, *sets]), seed, found)


def drop(wanted: str, arm: str, *, yes: bool, as_json: bool) -> int:
    """Ends what has not ended of one arm."""
    return _stop(wanted, arm, f"Drop arm {arm} of sweep {wanted}?", yes=yes, as_json=as_json)


def stop(wanted: str | None, *, yes: bool, as_json: bool) -> int:
    """Ends the whole sweep: what trains keeps a checkpoint, what waits never starts, the machines are given back."""
    return _stop(wanted, None, "Stop the sweep? What trains keeps a checkpoint.", yes=yes, as_json=as_json)


def _stop(wanted: str | None, arm: str | None, question: str, *, yes: bool, as_json: bool) -> int:
    with open_ledger() as ledger:
        sweep = sweeps.find(ledger.rows, wanted)
        runs = [run for run in current(sweeps.runs_of(ledger.rows, sweep.id)) if arm in (None, run.labels.get("arm"))]
        if not runs:
            raise UserError(f"sweep {sweep.name} has no arm {arm!r}", f"gptctl sweep status {sweep.name}")
        if any(run.state is not State.ENDED for run in runs) and not (yes or screen.ask(question, _command())):
            screen.talk("nothing was stopped")
            return 0
        code = stop_runs(ledger.home, runs, lambda run: screen.show_events(_title(run)))
        show(ledger, sweep, as_json=as_json)
        return code


def compare_arms(wanted: str | None, *, html: Path | None, charts: Path | None, as_json: bool) -> int:
    """The finished runs side by side, against the baseline, within the noise of its seeds."""
    with open_ledger() as ledger:
        sweep = sweeps.find(ledger.rows, wanted)
        ended = [run for run in current(sweeps.runs_of(ledger.rows, sweep.id)) if run.outcome is Outcome.FINISHED]
    baseline = next((run.id for run in ended if run.labels.get("arm") == sweep.terms.baseline), None)
    if baseline is None or len(ended) < 2:
        raise UserError(
            f"sweep {sweep.name}: {len(ended)} finished runs, and the baseline has to be one of at least two",
            f"gptctl sweep resume {sweep.name}",
        )
    return compare.compare_runs([run.id for run in ended], baseline, [], html=html, charts=charts, as_json=as_json)


def _command() -> str:
    return " ".join(["gptctl", *sys.argv[1:]])

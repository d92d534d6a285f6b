"""`gptctl check HOST --drill`: does a machine that is left alone end on its own? Rents one to find out."""

from __future__ import annotations

import json
import time
from pathlib import Path

from orchestrator.cli.machine_types import machine_of
from orchestrator.cli.machines.watcher import warn_if_unwatched
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.plans.plan import Planner
from orchestrator.cli.screen import screen
from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.config.recipe import Limits, load_recipe
from orchestrator.core.config.settings import load_settings
from orchestrator.core.errors import StillBilling, UserError
from orchestrator.core.fleet.watcher_mark import watcher_alive
from orchestrator.core.formats import dollars, duration, local_time
from orchestrator.core.money.calendar import month_start
from orchestrator.core.planning.limits import check_guard, check_month, check_plan
from orchestrator.fleet.guard_drill import Drilled, drill_plan, drive_drill, new_drill, patience_s
from orchestrator.fleet.offers import ask_for
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs.new_run import RunRequest

GUARDS = ("watcher", "key-on-box", "self")
ANY_RECIPE = "quickstart"
"""A run needs a recipe; the drill trains nothing."""


def drill(host_name: str | None, file: Path | None, *, lease_s: float, yes: bool, as_json: bool) -> int:
    """Asks, rents, leaves the machine alone and reports. Exit 7 if its guard did not end it, and gptctl had to."""
    if host_name is None:
        raise UserError("--drill needs a host to rent", "gptctl check HOST --drill")
    with open_ledger() as ledger:
        host = load_inventory(file, ledger.home).host(host_name)
        request = _request(ledger, host, lease_s)
        warn_if_unwatched(ledger.home, host)
        if not (yes or screen.ask(_question(ledger.home, request, lease_s), f"gptctl check {host.name} --drill")):
            screen.talk("nothing was rented")
            return 0
        started = new_drill(ledger, request, time.time())
        price = dollars(request.plan.price_per_hour_usd)
        screen.talk(f"{started.id}: renting one {request.machine.name} at {price}/h, {_costs(request, lease_s)}")
        try:
            with screen.show_events(f"{started.id} on {host.name}") as tell:
                drilled = drive_drill(ledger.home, started.id, tell, lease_s)
        except KeyboardInterrupt:
            return _left(ledger, started.id)
    return _show(host, drilled, as_json=as_json)


def _request(ledger: Ledger, host: HostSpec, lease_s: float) -> RunRequest:
    """What to rent, within the limits of the host entry and the month."""
    if not host.paid:
        raise UserError(
            f"{host.name} is {host.provider}, which is not rented, so nothing has to end it", "name a rented host"
        )
    recipe = load_recipe(ANY_RECIPE).model_copy(update={"name": "drill"})
    machine = machine_of(host)
    plan = drill_plan(Planner(recipe, None, Limits(), (), ask_for([host]).offers).plan(host, machine), lease_s)
    check_guard(plan, host, unguarded=False)
    if host.guard not in GUARDS:
        raise UserError(f"{host.name}: guard {host.guard!r} has no drill", f"set guard to one of {', '.join(GUARDS)}")
    check_plan(plan)
    check_month(plan, ledger.spend_since(month_start(time.time())), load_settings(ledger.home).limits.max_usd_per_month)
    return RunRequest(recipe=recipe, host=host, machine=machine, plan=plan)


def _question(home: Path, request: RunRequest, lease_s: float) -> str:
    host, price = request.host, dollars(request.plan.price_per_hour_usd)
    unwatched = host.guard == "watcher" and watcher_alive(home, time.time(), host.provider) is None
    doubt = "gptctl sees no sign of a watcher, so nothing here would end it. " if unwatched else ""
    return (
        f"{doubt}Rent one {request.machine.name} at {price}/h, and let its guard ({host.guard}) end "
        f"it {duration(lease_s)} later? That costs {_costs(request, lease_s)}."
    )


def _costs(request: RunRequest, lease_s: float) -> str:
    """From the order, boot included: what a bill counts until a look shows more."""
    price, boot_s = request.plan.price_per_hour_usd or 0.0, request.plan.hours.boot * 3600
    soon, late = (seconds / 3600 * price for seconds in (boot_s + lease_s, boot_s + lease_s + patience_s(lease_s)))
    return f"about {dollars(soon)}, or {dollars(late)} if its guard does not end it and gptctl does"


def _left(ledger: Ledger, run_id: str) -> int:
    """After Ctrl-C: says what ends the machine."""
    rental = ledger.rental(ledger.run(run_id).rental_id or "")
    if rental.instance_id is None:
        screen.talk(f"interrupted; gptctl orphans shows whether a machine was bought. Next: gptctl release {run_id}")
        return StillBilling.exit_code
    screen.talk(
        f"interrupted; {rental.instance_id} ({dollars(rental.price_per_hour_usd)}/h) is ended by its guard at "
        f"{local_time(rental.ends_at)}, or now by: gptctl orphans --reap {rental.instance_id}. Then gptctl release "
        f"{run_id} settles its bill",
        style="yellow",
    )
    return StillBilling.exit_code


def _show(host: HostSpec, drilled: Drilled, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"host": host.name, "drill": drilled.to_json()}, indent=1))
    elif drilled.died and drilled.gone_at is not None:
        late_s = drilled.late_s or 0.0
        when = f"{duration(abs(late_s))} {'after' if late_s >= 0 else 'before'} its deadline"
        print(
            f"{drilled.instance_id} ended on its own ({drilled.guard}): gone at {local_time(drilled.gone_at)}, {when}; "
            f"it cost {dollars(drilled.cost_usd)} ({drilled.run})",
            flush=True,
        )
    else:
        print(
            f"{drilled.instance_id} did NOT end on its own: its deadline was {local_time(drilled.ends_at)}. "
            f"gptctl ended it; it cost {dollars(drilled.cost_usd)} ({drilled.run})",
            flush=True,
        )
    if drilled.died:
        return 0
    screen.talk(
        f"its guard ({drilled.guard}) does not work: another machine would bill until you end it. "
        "docs/concepts/guards.md explains how to set up a guard",
        style="bold red",
    )
    return StillBilling.exit_code

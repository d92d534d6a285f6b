"""`gptctl run`, `resume`, `stop` and `release`: ask, hand over to the pipeline, show how it went.

You agree to everything before the first line is written to the ledger; from then on the pipeline decides.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.cli.driver.driver import hand_over
from orchestrator.cli.driver.on_the_driver import refuse_rented
from orchestrator.cli.failures import leave_on_signals, run_folder
from orchestrator.cli.machines.track import start_tracking
from orchestrator.cli.machines.watcher import warn_if_unwatched
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.plans import spot
from orchestrator.cli.plans.origin import Beginning, StorageOf, beginning, importer, storages
from orchestrator.cli.plans.plan import planned, show_alternatives, show_plan, show_published, typed_limits
from orchestrator.cli.plans.stores import check_store, home_boxes
from orchestrator.cli.runs.late_store import add_store
from orchestrator.cli.runs.outcome import show_ending, show_next_commands
from orchestrator.cli.runs.queue import agreed_to_wait, busy_with
from orchestrator.cli.runs.typed_names import checked_text, labels_of
from orchestrator.cli.screen import screen
from orchestrator.core.checkpoints.store_places import check_scheme
from orchestrator.core.config.inventory import HostSpec, Inventory, load_inventory
from orchestrator.core.config.recipe import Recipe, load_recipe
from orchestrator.core.config.settings import load_settings
from orchestrator.core.errors import StillBilling, UserError
from orchestrator.core.events import Event
from orchestrator.core.formats import dollars, local_time
from orchestrator.core.machines import machine_type
from orchestrator.core.money.calendar import month_start
from orchestrator.core.money.cost import spent
from orchestrator.core.planning.forecast import kept_bytes
from orchestrator.core.planning.limits import budget_s, check_guard, check_month
from orchestrator.core.states import State
from orchestrator.core.suggest import one_of
from orchestrator.ledger.bills.fetch_rates import fetch_rates
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.pipeline import drive, outcome_code
from orchestrator.runs.new_run import RunRequest, new_run
from orchestrator.runs.release import release_run
from orchestrator.runs.stop import stop_run


@dataclass(frozen=True)
class Wish:
    """What you typed after `gptctl run`."""

    recipe: str
    host: str | None
    on: str | None
    detach: bool
    keep: bool
    again: bool
    name: str | None
    labels: list[str]
    note: str | None
    sets: list[str]
    resume_from: str | None
    max_cost_usd: float | None
    max_hours: float | None
    max_price_per_hour_usd: float | None
    wait: bool
    unguarded: bool
    inject: str | None
    accept_new_host_key: bool
    inventory: Path | None
    queue: bool = False
    spot: bool = False
    max_interruptions: int | None = None
    driver: str | None = None


def run(wish: Wish, *, yes: bool, as_json: bool) -> int:
    """Plans, asks, and drives a new run. Returns the exit code of its outcome, 0 when detached."""
    recipe = load_recipe(wish.recipe, wish.sets)
    with open_ledger() as ledger:
        inventory = load_inventory(wish.inventory, ledger.home)
        host = _host(wish, ledger, inventory)
        if wish.spot:
            host = spot.on_spot_market(host)
        if wish.driver is not None:
            refuse_rented(inventory.host(wish.driver))
        if (store := host.checkpoint_store or host.fetch_store) is not None:
            check_scheme(store)
        stores = storages(ledger, inventory, accept_new=wish.accept_new_host_key)
        begun = beginning(ledger, wish.resume_from, recipe, stores, importer(ledger))
        request = _request(wish, ledger, recipe, host, inventory, begun=begun)
        show_plan(request.plan)
        show_published(recipe)
        show_alternatives(request.alternatives)
        if request.recovery is not None:
            spot.show(request.recovery, request.plan)
        check_guard(request.plan, host, unguarded=wish.unguarded)
        warn_if_unwatched(ledger.home, host)
        _check_store(wish, request, stores)
        _rehearse(wish, host)
        if not _is_agreed(wish, ledger, request, begun, yes):
            screen.talk("nothing was started")
            return 0
        host_and_rental = (host.name, wish.on)
        waits = agreed_to_wait(ledger, *host_and_rental, paid=host.paid, asked=wish.queue, yes=yes)
        if waits is None and busy_with(ledger, *host_and_rental, paid=host.paid) is not None:
            screen.talk("nothing was started")
            return 0
        started = new_run(ledger, replace(request, queue=waits), time.time())
        if wish.driver is not None:
            hand_over(ledger, [started.id], inventory.host(wish.driver), accept_new=wish.accept_new_host_key)
            if as_json:
                show_ending(ledger, started.id, as_json=True)
            else:
                print(started.id, flush=True)
            return 0
        return follow_through(ledger, started, detach=wish.detach, as_json=as_json)


def _host(wish: Wish, ledger: Ledger, inventory: Inventory) -> HostSpec:
    """The host entry: the one named, or for --on the one that the rental's last run was given."""
    if wish.on is not None:
        rental = ledger.rental(wish.on)
        if rental.state != RENTAL_OPEN:
            raise UserError(f"{rental.id} was released and cannot serve another run", f"use --host {rental.host}")
        if wish.host not in (None, rental.host):
            raise UserError(f"{rental.id} is on host {rental.host}, not {wish.host}", "omit --host")
        return HostSpec.from_resolved(ledger.runs(rental_id=rental.id, limit=1)[0].host_data)
    if wish.host is None:
        raise UserError(f"no host given; known: {one_of(inventory.hosts)}", _command("--host", "local"))
    return inventory.host(wish.host)


def _request(
    wish: Wish, ledger: Ledger, recipe: Recipe, host: HostSpec, inventory: Inventory, *, begun: Beginning
) -> RunRequest:
    limits = typed_limits(wish.max_cost_usd, wish.max_hours, wish.max_price_per_hour_usd)
    plan, *others = planned(
        recipe, host, ledger.rates(), limits, from_step=begun.from_step,
        fetches=fetch_rates(ledger.rentals()),
    )  # fmt: skip
    monthly = load_settings(ledger.home).limits.max_usd_per_month
    dearest = max((plan, *others), key=lambda each: each.cost_usd.total or 0.0)
    check_month(dearest, ledger.spend_since(month_start(time.time())), monthly)
    return RunRequest(
        recipe=recipe,
        host=host,
        machine=machine_type(plan.machine),
        plan=plan,
        alternatives=tuple(others),
        name=checked_text("--name", wish.name),
        labels=labels_of(wish.labels),
        note=checked_text("--note", wish.note),
        keep=wish.keep,
        wait=wish.wait,
        accept_new_host_key=wish.accept_new_host_key,
        on_rental=wish.on,
        resume_from=begun.resume_from,
        init_from=begun.init_from,
        origin=begun.origin,
        recovery=spot.agreed(
            host,
            (plan, *others),
            is_spot=wish.spot,
            most=wish.max_interruptions,
            clashes={"--on": wish.on is not None, "--keep": wish.keep, "--queue": wish.queue},
        ),
        home_boxes=home_boxes(inventory, host, begun),
    )


def _rehearse(wish: Wish, host: HostSpec) -> None:
    """Arms the faults of --inject in the rehearsal cloud, and starts the cloud if it is not running."""
    if wish.inject is None:
        return
    if host.provider != "rehearsal":
        raise UserError(f"--inject is for the rehearsal cloud; {host.name} is {host.provider}", "omit --inject")
    from orchestrator.providers.rehearsal import provider as rehearsal

    rehearsal.start(wish.inject)


def _check_store(wish: Wish, request: RunRequest, stores: StorageOf) -> None:
    plan = request.plan
    check_store(
        request.host, stores, needs_bytes=kept_bytes(request.recipe, plan.steps, plan.from_step),
        lasts_s=budget_s(plan) or plan.hours.total * 3600, is_detached=wish.detach,
    )  # fmt: skip


def _is_agreed(wish: Wish, ledger: Ledger, request: RunRequest, begun: Beginning, yes: bool) -> bool:
    """Says in what the data differ from those that the checkpoint saw. Reports an unfinished run of the same recipe on
    the same host, then asks; with --yes it refuses that instead."""
    unfinished = [
        found
        for found in ledger.runs(unfinished_only=True, host=request.host.name)
        if found.recipe_digest == request.recipe.digest
    ]
    if unfinished and not wish.again:
        message = f"{unfinished[0].id} is an unfinished run of this recipe on {request.host.name}"
        if yes:
            raise UserError(message, f"gptctl resume {unfinished[0].id}, or --again for a second run")
        screen.talk(f"{message}; gptctl resume {unfinished[0].id} continues it")
    for difference in begun.other_data:
        screen.talk(f"other data than the checkpoint saw: {difference}", style="yellow")
    more = ", on other data than its checkpoint saw" if begun.other_data else ""
    return yes or screen.ask(f"Start a new run on {request.host.name}{more}?", _command())


def _command(*more: str) -> str:
    """The command you typed with words added: the next command of a hint."""
    return shlex.join(["gptctl", *sys.argv[1:], *more])


def resume(wanted: str | None, *, detach: bool, as_json: bool, store: str | None = None) -> int:
    """Continues a run; for an ended one, prints the outcome and returns its exit code. store: where its machine stores
    what it keeps, from now on."""
    with open_ledger() as ledger:
        found = ledger.find_run(wanted)
        if store is not None:
            add_store(ledger, found, store)
        if found.state is State.ENDED:
            show_ending(ledger, found.id, as_json=as_json)
            return outcome_code(found)
        return follow_through(ledger, found, detach=detach, as_json=as_json)


def follow_through(ledger: Ledger, found: RunRecord, *, detach: bool, as_json: bool) -> int:
    """Drives a run on screen, then shows how it ended, or how to continue it."""
    run_folder.set(ledger.home / "runs" / found.id)
    leave_on_signals()
    start_tracking(ledger.home, found.id)
    left: list[Event] = []
    with screen.show_events(f"{found.id} on {found.host} ({found.machine})") as tell:

        def listen(event: Event) -> None:
            if event.kind == "detached":
                left.append(event)
                # gptctl is leaving; a second Ctrl-C would only garble its last lines.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            if event.kind == "metric":
                event = replace(event, data={"cost_usd": spent(ledger.intervals(found.id)), **event.data})
            tell(event)

        code = drive(ledger.home, found.id, listen, until="launch" if detach else None)
    if left:
        training = bool(left[0].data.get("training"))
        question = f"{found.id} holds a paid machine ({_price(ledger, found)}) that trains nothing. Release it now?"
        if code == StillBilling.exit_code and screen.on_terminal() and screen.ask(question, "", default=True):
            return release(found.id, force=False, yes=True, as_json=as_json)
        show_next_commands(found.id, training=training)
    if left and not as_json:
        print(found.id, flush=True)
    else:
        show_ending(ledger, found.id, as_json=as_json)
    return code


def _price(ledger: Ledger, found: RunRecord) -> str:
    return f"{dollars(ledger.rental(found.rental_id or '').price_per_hour_usd)}/h"


def stop(wanted: str | None, *, yes: bool, as_json: bool) -> int:
    """Asks, then ends the training with a checkpoint, fetches and releases."""
    with open_ledger() as ledger:
        found = ledger.find_run(wanted)
        if found.state is not State.ENDED and not (yes or screen.ask(_stop_question(found), _command())):
            screen.talk("nothing was stopped")
            return 0
        run_folder.set(ledger.home / "runs" / found.id)
        with screen.show_events(f"stopping {found.id}") as tell:
            code = stop_run(ledger.home, found.id, tell)
        show_ending(ledger, found.id, as_json=as_json)
        return code


def _stop_question(found: RunRecord) -> str:
    where = f"step {found.step} of {found.total_steps}" if found.step else found.state.value
    return f"Stop {found.id} on {found.host} at {where}? It keeps a checkpoint."


def release_question(ledger: Ledger, found: RunRecord, force: bool) -> str:
    """What is asked before a run's machine is given back. Raises UserError for a run without one."""
    if found.rental_id is None:
        raise UserError(f"{found.id} has no machine ({found.state})", f"gptctl status {found.id}")
    rental = ledger.rental(found.rental_id)
    held = f"{rental.machine}, {dollars(rental.price_per_hour_usd)}/h, held since {local_time(rental.created_at)}"
    lost = f", and what is not fetched is LOST. To prevent: gptctl fetch {found.id}" if force else "."
    return f"Release {found.host} ({held})? Run {found.id} ends{lost}"


def _known(ledger: Ledger, wanted: str | None) -> RunRecord:
    """The run whose machine is to end. Raises UserError, which says what ends a machine that no run here knows."""
    try:
        return ledger.find_run(wanted)
    except UserError as error:
        hint = (
            "no ledger here has its id. gptctl orphans lists what your accounts hold; gptctl orphans --reap ID ends it"
        )
        raise UserError(error.message, hint) from error


def release(wanted: str | None, *, force: bool, yes: bool, as_json: bool) -> int:
    """Asks, saying what ends and what may be lost, then gives the machine back."""
    with open_ledger() as ledger:
        found = _known(ledger, wanted) if force else ledger.find_run(wanted)
        if found.rental_id is None:
            raise UserError(f"{found.id} has no machine ({found.state})", f"gptctl status {found.id}")
        rental = ledger.rental(found.rental_id)
        if rental.state == RENTAL_OPEN and not (yes or screen.ask(release_question(ledger, found, force), _command())):
            screen.talk("nothing was released")
            return 0
        run_folder.set(ledger.home / "runs" / found.id)
        with screen.show_events(f"releasing {found.host}") as tell:
            code = release_run(ledger.home, found.id, tell, force=force)
        show_ending(ledger, found.id, as_json=as_json)
        return code

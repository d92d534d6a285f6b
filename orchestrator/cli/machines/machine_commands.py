"""Signatures and help of the verbs about machines and money; app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options


def cost(
    run: options.Run = None,
    *,
    reconcile: Annotated[
        Path | None, typer.Option("--reconcile", metavar="FILE.csv", help="Compare with a provider's invoice.")
    ] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what runs cost: dollars, GPU hours, energy.

    Shows dollars by stage and per billion tokens, kWh from board power, and CO2e, for one run or for all.
    """
    if reconcile is not None:
        from orchestrator.cli.machines import reconcile as books

        return books.reconcile(reconcile, as_json=as_json)
    from orchestrator.cli.machines import cost as it

    return it.cost(run, as_json=as_json)


def hosts(
    offline: options.Offline = False,
    stop_rehearsal: Annotated[
        bool, typer.Option("--stop-rehearsal", help="End the rehearsal cloud and its simulated machines.")
    ] = False,
    inventory: options.Inventory = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """List your hosts: which answer now, price, capacity."""
    from orchestrator.cli.machines import hosts as it

    return it.stop_rehearsal() if stop_rehearsal else it.hosts(inventory, offline=offline, as_json=as_json)


def orphans(
    machine: Annotated[
        str | None, typer.Argument(metavar="ID", help="With --reap or --adopt: only this instance or rental.")
    ] = None,
    *,
    reap: Annotated[
        bool,
        typer.Option("--reap", help="End machines past their deadline; with ID, end that machine."),
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Write the machines into the ledger here, so that `gptctl release` works.")
    ] = False,
    install_timer: Annotated[
        bool, typer.Option("--install-timer", help="Run --reap on this computer every five minutes.")
    ] = False,
    inventory: options.Inventory = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """List every machine that gptctl rented, with its deadline.

    Asks your cloud accounts, not the ledger. Exits with 7 if a machine is past its deadline.
    """
    from orchestrator.cli.machines import orphans as it

    wish = it.Wish(machine, reap, adopt, install_timer, inventory)
    return it.orphans(wish, yes=yes, as_json=as_json)


def offers(
    *,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="NAME", help="Show only this GPU, for example H100.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="Show only machines with this many GPUs.")
    ] = None,
    max_price: Annotated[
        float | None, typer.Option("--max-price", metavar="USD", help="Show only offers up to this price per hour.")
    ] = None,
    offline: options.Offline = False,
    inventory: options.Inventory = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what you can rent now, where, and for how much.

    Asks all cloud accounts of the inventory at once, for at most two seconds.
    """
    from orchestrator.cli.machines import offers as it

    return it.offers(it.Wish(gpu, count, max_price), inventory, offline=offline, as_json=as_json)


def notify(
    action: Annotated[str | None, typer.Argument(metavar="[setup|test]", help="Default: show what is set up.")] = None,
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="An address as apprise writes it, a webhook, or env:NAME.")
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="Send a test message to every address.")] = False,
    verbose: options.Verbose = False,
) -> int:
    """Show who hears of what, add an address, or send a test.

    setup sends a test message to the address and writes it into config.toml: ntfy, Telegram, Slack, webhooks. The rest
    of [notify] (which events, a command of your own) is yours to edit.
    """
    from orchestrator.cli.machines import notify as it

    return it.notify(action, url, test=test)


def track(
    run: options.Run = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep on while gptctl follows the run.")] = False,
    verbose: options.Verbose = False,
) -> int:
    """Send a run's metrics to wandb, trackio or MLflow.

    Set up under [track] in config.toml; then runs do it by themselves, from the mirror on this computer. This sends
    what a service has not got yet.
    """
    from orchestrator.cli.machines import track as it

    return it.track(run, follow=follow)


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds them to the app; `verb` explains their failures."""
    for body in (cost, hosts, offers, orphans, notify, track):
        verb(body)

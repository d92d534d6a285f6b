"""Signatures and help of the verbs about machines and money; app.py says how they work, and registers them."""

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

    Dollars by stage and per billion tokens, kWh from board power, CO2e; of one run or of all.
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
    """List the hosts: which answer now, price, capacity."""
    from orchestrator.cli.machines import hosts as it

    return it.stop_rehearsal() if stop_rehearsal else it.hosts(inventory, offline=offline, as_json=as_json)


def orphans(
    machine: Annotated[
        str | None, typer.Argument(metavar="ID", help="With --reap or --adopt: this instance or rental.")
    ] = None,
    *,
    reap: Annotated[
        bool,
        typer.Option("--reap", help="End machines past their deadline; with ID, that one."),
    ] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Write them into the ledger here, so that `release` works.")
    ] = False,
    install_timer: Annotated[
        bool, typer.Option("--install-timer", help="Let this computer do --reap every five minutes.")
    ] = False,
    inventory: options.Inventory = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """List every rented machine with our tag: age, price, deadline.

    Asks every cloud account, not the ledger. Exit 7 when one is past its deadline.
    """
    from orchestrator.cli.machines import orphans as it

    wish = it.Wish(machine, reap, adopt, install_timer, inventory)
    return it.orphans(wish, yes=yes, as_json=as_json)


def offers(
    *,
    gpu: Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Only this card, such as H100.")] = None,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="Only this many cards.")] = None,
    max_price: Annotated[
        float | None, typer.Option("--max-price", metavar="USD", help="At most this much per hour.")
    ] = None,
    offline: options.Offline = False,
    inventory: options.Inventory = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show what can be rented now, where, and for how much.

    Asks every cloud account of the inventory at once, for two seconds at most.
    """
    from orchestrator.cli.machines import offers as it

    return it.offers(it.Wish(gpu, count, max_price), inventory, offline=offline, as_json=as_json)


def notify(
    test: Annotated[bool, typer.Option("--test", help="Send a message to everybody who is named.")] = False,
    verbose: options.Verbose = False,
) -> int:
    """Show whom gptctl tells of what happens, or try it.

    Set under [notify] in config.toml: ntfy, Telegram, Slack, webhooks, any command.
    """
    from orchestrator.cli.machines import notify as it

    return it.notify(test=test)


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds them to the app; `verb` explains their failures."""
    for body in (cost, hosts, offers, orphans, notify):
        verb(body)

"""Signatures and help of `gptctl driver`. app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.cli import completion, options
from orchestrator.cli.failures import explained

HELP = """Let a machine that is always on drive your runs. They go on, watched, while this computer is off.

gptctl --driver HOST status (logs, stop, fetch, sweep ...) asks it. `gptctl check HOST --driver` says whether it can.
"""
driver = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True)

Host = Annotated[
    str,
    typer.Argument(metavar="HOST", help="A host of provider ssh, or local.", autocompletion=completion.hosts),
]
What = Annotated[str, typer.Argument(metavar="RUN|SWEEP", help="A run or a sweep, by id or name.")]


@driver.command()
@explained
def give(
    what: What,
    host: Host,
    accept_new_host_key: options.AcceptKey = False,
    inventory: options.Inventory = None,
    verbose: options.Verbose = False,
) -> int:
    """Hand a run or a sweep over. HOST drives it from now on, and this computer does not."""
    from orchestrator.cli.driver import driver as it

    return it.give_to(what, host, inventory, accept_new=accept_new_host_key)


@driver.command()
@explained
def take(
    what: What,
    host: Host,
    *,
    lost: Annotated[bool, typer.Option("--lost", help="HOST never comes back: take it without asking HOST.")] = False,
    yes: options.Yes = False,
    accept_new_host_key: options.AcceptKey = False,
    inventory: options.Inventory = None,
    verbose: options.Verbose = False,
) -> int:
    """Take a run or a sweep back, with its files. Works where this computer has lost its GPTCTL_HOME."""
    from orchestrator.cli.driver import driver as it

    if lost:
        return it.take_from_lost(what, host, yes=yes)
    return it.take_from(what, host, inventory, accept_new=accept_new_host_key)


@driver.command(hidden=True)
@explained
def ready(places: Annotated[list[str] | None, typer.Argument()] = None) -> int:
    """On the driver: say what is missing."""
    from orchestrator.cli.driver import driver as it

    return it.ready(places or [])


@driver.command(hidden=True)
@explained
def accept() -> int:
    """On the driver: take the runs that stdin has."""
    from orchestrator.cli.driver import driver as it

    return it.accept_here()


@driver.command(hidden=True)
@explained
def receive(run: str, below: str, sha256: str) -> int:
    """On the driver: say where the files of a checkpoint go, and put it in its place once it is whole."""
    from orchestrator.cli.driver import incoming as it

    return it.receive(run, below, sha256)


@driver.command(hidden=True)
@explained
def surrender(what: str) -> int:
    """On the driver: stop driving, and print the runs for who drives next."""
    from orchestrator.cli.driver import driver as it

    return it.surrender(what)


@driver.command(hidden=True)
@explained
def files(run: Annotated[str | None, typer.Argument()] = None) -> int:
    """On the driver: list the files of a run."""
    from orchestrator.cli.driver import driver as it

    return it.files(run)


@driver.command(hidden=True)
@explained
def work(run: str, stay: Annotated[bool, typer.Option("--stay", help="Stay until the run ends.")] = False) -> int:
    """On the driver: drive a run to its end."""
    from orchestrator.cli.driver import work as it

    return it.stay(run) if stay else it.work(run)


def register(add_group: Callable[[typer.Typer], None]) -> None:
    """Adds the group to the app."""
    add_group(driver)

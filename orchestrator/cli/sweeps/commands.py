"""Signatures and help of the commands about many runs: `queue` and `sweep`. app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.failures import explained


def queue(
    target: Annotated[
        str | None, typer.Argument(metavar="HOST|RENTAL|RUN", help="Default: the machine of the newest unfinished run.")
    ] = None,
    *,
    move: Annotated[str | None, typer.Option("--move", metavar="RUN", help="Move a waiting run to place --to.")] = None,
    to: Annotated[int, typer.Option("--to", metavar="N", min=1, help="With --move: the place, from 1.")] = 1,
    drop: Annotated[str | None, typer.Option("--drop", metavar="RUN", help="End a waiting run unstarted.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """List what trains and what waits on a machine.

    The machine keeps the queue and starts the next training itself, also when this computer is off.
    """
    from orchestrator.cli.runs import queue as it

    return it.queue(target, it.Edit(move, to, drop), as_json=as_json)


HELP = """Many runs of one question under one ceiling. A baseline, its variants and seeds.

Start with: gptctl sweep plan sweeps/interventions.toml --host HOST. The machine starts one run after the other itself.
"""
sweep = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file; docs/guides/sweeps.md shows one.")]
Host = Annotated[str, typer.Option("--host", metavar="HOST", help="Where to train: a host of the inventory.")]
Machines = Annotated[
    int | None,
    typer.Option("--machines", metavar="K", min=1, max=64, help="Machines side by side."),
]
Sweep = Annotated[str | None, typer.Argument(metavar="SWEEP", help="Its name or id. Default: the newest sweep.")]
NamedSweep = Annotated[str, typer.Argument(metavar="SWEEP", help="Its name or id.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Leave as soon as every run is in a queue.")]


@sweep.command()
@explained
def plan(
    file: File,
    *,
    host: Host,
    machines: Machines = None,
    inventory: options.Inventory = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show every arm: steps, hours, dollars, and where the ceiling falls. Buys nothing."""
    from orchestrator.cli.sweeps import plan as it

    return it.plan(file, host, machines, inventory, as_json=as_json)


@sweep.command()
@explained
def run(
    file: File,
    *,
    host: Host,
    machines: Machines = None,
    detach: Detach = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for capacity.")] = False,
    unguarded: Annotated[bool, typer.Option("--unguarded", help="Rent without a guard.")] = False,
    driver: options.Driver = None,
    accept_new_host_key: options.AcceptKey = False,
    inventory: options.Inventory = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Start a sweep, or continue the one of this file. The machine goes on when this computer is off."""
    from orchestrator.cli.sweeps import sweep as it
    from orchestrator.cli.sweeps.requests import Go

    go = Go(machines, detach, wait, unguarded, accept_new_host_key, driver)
    return it.run(file, host, go, inventory, yes=yes, as_json=as_json)


@sweep.command()
@explained
def resume(
    name: Sweep = None,
    *,
    rental: Annotated[str | None, typer.Option("--rental", metavar="RENTAL", help="Only this machine's runs.")] = None,
    detach: Detach = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Continue a sweep that gptctl left: queue what is missing, follow every run to its end, fetch, release."""
    from orchestrator.cli.sweeps import sweep as it

    return it.resume(name, rental=rental, detach=detach, as_json=as_json)


@sweep.command()
@explained
def status(name: Sweep = None, as_json: options.Json = False, verbose: options.Verbose = False) -> int:
    """Show every arm: where it is, its loss and cost, and the money of all."""
    from orchestrator.cli.sweeps import sweep as it

    return it.status(name, as_json=as_json)


@sweep.command()
@explained
def add(
    name: NamedSweep,
    recipe: options.Recipe,
    *,
    sets: options.Set = None,
    detach: Detach = False,
    unguarded: Annotated[bool, typer.Option("--unguarded", help="Rent without a guard.")] = False,
    inventory: options.Inventory = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Add an arm with every seed of the sweep, behind what waits. Shows what it costs, and asks."""
    from orchestrator.cli.sweeps import sweep as it
    from orchestrator.cli.sweeps.requests import Go

    go = Go(detach=detach, unguarded=unguarded)
    return it.add(name, recipe, sets or [], go, inventory, yes=yes, as_json=as_json)


@sweep.command()
@explained
def drop(
    name: NamedSweep,
    arm: Annotated[str, typer.Argument(metavar="ARM", help="The arm's name, as `sweep status` shows it.")],
    *,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """End what has not ended of one arm."""
    from orchestrator.cli.sweeps import sweep as it

    return it.drop(name, arm, yes=yes, as_json=as_json)


@sweep.command()
@explained
def stop(
    name: Sweep = None, yes: options.Yes = False, as_json: options.Json = False, verbose: options.Verbose = False
) -> int:
    """End a whole sweep. What trains keeps a checkpoint; what waits never starts."""
    from orchestrator.cli.sweeps import sweep as it

    return it.stop(name, yes=yes, as_json=as_json)


@sweep.command()
@explained
def compare(
    name: Sweep = None,
    *,
    html: options.Html = None,
    charts: options.Charts = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Compare the finished arms with the baseline, within the noise of its seeds."""
    from orchestrator.cli.sweeps import sweep as it

    return it.compare_arms(name, html=html, charts=charts, as_json=as_json)


def register(
    verb: Callable[[Callable[..., int]], Callable[..., int]], add_group: Callable[[typer.Typer], None]
) -> None:
    """Adds them to the app; `verb` explains their failures."""
    verb(queue)
    add_group(sweep)

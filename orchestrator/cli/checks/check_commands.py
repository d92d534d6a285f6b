"""Signatures and help of `check` and `ssh`; app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.cli import completion, options


def check(
    host: Annotated[
        str | None,
        typer.Argument(
            metavar="HOST", help="Default: this computer, which drives the runs.", autocompletion=completion.hosts
        ),
    ] = None,
    *,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Check disk and memory for this recipe.")
    ] = None,
    drill: Annotated[
        bool, typer.Option("--drill", help="Rent the host's cheapest machine and see whether its guard ends it.")
    ] = False,
    driver: Annotated[bool, typer.Option("--driver", help="Check whether the host can drive your runs.")] = False,
    policy: Annotated[bool, typer.Option("--policy", help="Print the least permissions needed.")] = False,
    lease_s: Annotated[
        # For rehearsals: the time between arming the guard and its deadline.
        float, typer.Option("--lease-s", min=1, max=3600, hidden=True)
    ] = 300.0,
    accept_new_host_key: options.AcceptKey = False,
    inventory: options.Inventory = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Check what would go wrong, here or on a host.

    Each line says ok, warn or fail, with the fix. --drill rents a machine for five minutes and leaves it alone: it asks
    you to agree to the price first, and exits with 7 if its guard does not end it; then gptctl does.
    """
    if policy:
        from orchestrator.cli.checks import cloud

        return cloud.policy(host, inventory)
    if drill:
        from orchestrator.cli.checks import drill as alone

        return alone.drill(host, inventory, lease_s=lease_s, yes=yes, as_json=as_json)
    from orchestrator.cli.checks import check as it

    return it.check(host, recipe, inventory, accept_new=accept_new_host_key, as_json=as_json, as_driver=driver)


def ssh(
    target: Annotated[str | None, typer.Argument(metavar="RUN|HOST", help="Default: the newest run.")] = None,
    command: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND", help="Instead of a shell.")] = None,
    accept_new_host_key: options.AcceptKey = False,
    inventory: options.Inventory = None,
    verbose: options.Verbose = False,
) -> int:
    """Open a shell on a run's machine or a host.

    Uses the same key, port and pinned host key as gptctl.
    """
    from orchestrator.cli.machines import ssh as it

    return it.ssh(target, command or [], inventory, accept_new=accept_new_host_key)


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds both to the command line."""
    verb(check)
    verb(ssh)

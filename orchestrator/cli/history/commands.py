"""Signatures and help of `gptctl runs`. app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.cli import completion, options
from orchestrator.cli.failures import explained

HELP = """List runs and their disk here; rename, forget, prune them.

Without a command: the list. No machine is asked, and what a run cost stays in `gptctl cost` whatever you forget.
"""
runs = typer.Typer(help=HELP, rich_markup_mode=None)

OneRun = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The id, name or first characters of its id.", autocompletion=completion.runs),
]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", autocompletion=completion.runs)]
OnlyCopies = Annotated[
    bool, typer.Option("--only-copies", help="Delete checkpoints that are nowhere else, too. They are lost for good.")
]


@runs.callback(invoke_without_command=True)
def top(context: typer.Context, as_json: options.Json = False) -> None:
    """Lists the runs where no command is named."""
    if context.invoked_subcommand is None:
        explained(_listed)(as_json=as_json)


def _listed(*, as_json: bool) -> int:
    from orchestrator.cli.history import history as it

    return it.listed(as_json=as_json)


@runs.command("list")
@explained
def list_runs(as_json: options.Json = False, verbose: options.Verbose = False) -> int:
    """List every run: its name, age, cost, and the disk it takes here."""
    return _listed(as_json=as_json)


@runs.command()
@explained
def rename(
    run: OneRun,
    name: Annotated[str, typer.Argument(metavar="NAME", help='Any printable text on one line; "" takes it away.')],
    verbose: options.Verbose = False,
) -> int:
    """Give a run another name. Its id stays."""
    from orchestrator.cli.history import history as it

    return it.rename(run, name)


@runs.command()
@explained
def forget(
    runs: Runs,
    *,
    only_copies: OnlyCopies = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Delete the files of ended runs here, and take the runs out of every list."""
    from orchestrator.cli.history import history as it

    return it.forget_these(runs, only_copies=only_copies, yes=yes, as_json=as_json)


@runs.command()
@explained
def prune(
    *,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="That ended so many days ago.")
    ] = None,
    outcome: Annotated[
        list[str] | None, typer.Option("--outcome", metavar="OUTCOME", help="That ended so; repeatable.")
    ] = None,
    except_newest: Annotated[
        int, typer.Option("--except-newest", metavar="N", min=0, help="Keep the newest N ended runs.")
    ] = 0,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="That have this label; repeatable.")
    ] = None,
    entirely: Annotated[
        bool, typer.Option("--forget", help="Forget the runs; without it only their checkpoints go.")
    ] = False,
    only_copies: OnlyCopies = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Free disk by rule: the checkpoints of the ended runs that every rule means.

    Logs, metrics, reports and costs stay. Checkpoints that no store has are kept, and named.
    """
    from orchestrator.cli.history import history as it

    typed = it.Typed(older_than, outcome or [], except_newest, label or [])
    return it.prune(typed, entirely=entirely, only_copies=only_copies, yes=yes, as_json=as_json)


def register(add_group: Callable[[typer.Typer], None]) -> None:
    """Adds the group to the app."""
    add_group(runs)

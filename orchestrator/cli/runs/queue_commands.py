"""Signatures and help of the commands about many runs: `queue` and `sweep`. app.py registers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.cli import options


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


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds them to the app; `verb` explains their failures."""
    verb(queue)

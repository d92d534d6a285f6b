"""Signature and help of `ui`; app.py registers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from orchestrator.cli import options


def ui(
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: 8765, or the next free one; 0: any.")
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS", help="Serve under this address, for a phone for example.")
    ] = "127.0.0.1",
    allow_actions: Annotated[
        bool, typer.Option("--allow-actions", help="Let the page stop, resume, fetch and release, after asking.")
    ] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in your browser.")] = False,
    verbose: options.Verbose = False,
) -> int:
    """Serve a live page of your runs: curves, money, logs.

    Works without network, in dark and light, on a phone. Needs the extra `ui`: pip install 'gptctl[ui]'.
    """
    from orchestrator.cli.ui import ui as it

    return it.ui(it.Wish(port, listen, allow_actions, open_browser))


def register(verb: Callable[[Callable[..., int]], Callable[..., int]]) -> None:
    """Adds it to the command line."""
    verb(ui)

"""A spinner on the terminal while a program says nothing yet; elsewhere, and for a screen reader, nothing.

Example::

    with waiting("loading the model") as stop:
        for line in lines:
            stop()      # as often as you like
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.cli.screen.foreign import clean
from orchestrator.cli.screen.screen import console, redraws


@contextmanager
def waiting(what: str) -> Iterator[Callable[[], None]]:
    """Yields what ends the spinner."""
    out = console(result=False)
    if not redraws(out):
        yield lambda: None
        return
    has_signs = (out.encoding or "").lower().startswith("utf")
    spinner = out.status(clean(what), spinner="dots" if has_signs else "line")
    spinner.start()
    try:
        yield spinner.stop
    finally:
        spinner.stop()

"""Jinja's templates of every page: a name that is missing is an error, and each is compiled once in a process.

environment = templates({"text": text}, autoescape=False)
page = environment.get_template("report.md.j2").render(values)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent.parent / "templates"


def templates(
    filters: Mapping[str, Callable[..., object]],
    *,
    autoescape: bool,
    finalize: Callable[[object], object] | None = None,
) -> Environment:
    """What finds and compiles them, with these filters. Keep it: it has what it compiled."""
    # Only now: every command that may drive a run loads this module, and few render a page.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=autoescape, finalize=finalize,
    )  # fmt: skip
    environment.filters.update(filters)
    return environment

"""Renders a report as Markdown, with foreign text made harmless.

It must not compute: a figure on the page is a figure in report.json. The template is templates/report.md.j2.

    page = render(report, private_places(run.recipe_data, home))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from orchestrator.core.formats import DASH, count, dollars, figure, hours, loss, number, percent, size, utc_time
from orchestrator.report.data_source import Places
from orchestrator.report.pages.templates import templates
from orchestrator.report.run_report import RunReport, shared

if TYPE_CHECKING:
    from jinja2 import Environment

BARS = "▁▂▃▄▅▆▇█"
FORMATS: Mapping[str, Callable[..., str]] = {
    each.__name__: each for each in (count, dollars, figure, hours, loss, number, percent, size, utc_time)
}
"""Filters of every template."""


def render(report: RunReport, places: Places) -> str:
    """The page, ending in one newline. `places`: the paths of this computer that it must not tell."""
    return _templates().get_template("report.md.j2").render(shared(report, places)).rstrip() + "\n"


@cache
def _templates() -> Environment:
    """Markdown, not HTML: `text` and `fenced` escape what is not ours."""
    return templates({**FORMATS, "text": text, "fenced": fenced, "spark": spark}, autoescape=False)


def text(value: object) -> str:
    """Foreign words within a line: no line break, no control character, nothing that Markdown or HTML interprets."""
    if value in (None, ""):
        return DASH
    plain = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", plain)


def fenced(value: object) -> str:
    """Foreign words as a code block whose fence is longer than any inside."""
    words = "".join(char for char in str(value) if char in "\n\t" or char.isprintable())
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", words))])
    return f"{fence}text\n{words}\n{fence}"


def spark(points: Sequence[Sequence[float]], width: int = 60) -> str:
    """The second of each pair as a row of bars, the lowest value at the bottom; empty for fewer than two points."""
    values = [point[1] for point in points]
    if len(values) < 2:
        return ""
    shown = (
        [values[index * (len(values) - 1) // (width - 1)] for index in range(width)] if len(values) > width else values
    )
    low, high = min(shown), max(shown)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(BARS[round((value - low) / step)] for value in shown)

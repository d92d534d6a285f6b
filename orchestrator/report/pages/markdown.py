"""Renders a report's facts as Markdown, with text that came from elsewhere made harmless.

It must not compute: a figure on the page is a figure in report.json. The template is templates/report.md.j2.

    page = render(facts)
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
DASH = "-"


def render(facts: Mapping[str, Any]) -> str:
    """The page, ending in one newline."""
    # Only now: every command that may drive a run loads this module, and few render a page.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent.parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML: `text` and `fenced` below escape what is not ours
    )
    filters = {
        "text": text, "fenced": fenced, "number": number, "figure": figure, "usd": usd, "when": when, "hours": hours,
        "size": size, "spark": spark, "share": share,
    }  # fmt: skip
    environment.filters.update(filters)
    return environment.get_template("report.md.j2").render(facts).rstrip() + "\n"


def text(value: object) -> str:
    """A stranger's words within a line: no line break, no control character, nothing that Markdown or HTML reads."""
    if value in (None, ""):
        return DASH
    plain = " ".join("".join(char if char.isprintable() else " " for char in str(value)).split())
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", plain)


def fenced(value: object) -> str:
    """A stranger's words as a code block whose fence is longer than any inside."""
    words = "".join(char for char in str(value) if char in "\n\t" or char.isprintable())
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", words))])
    return f"{fence}text\n{words}\n{fence}"


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators; a dash for None."""
    return DASH if value is None else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """`950`, `26.5k`, `3.26B`: for columns of counts, where three digits tell rows apart."""
    if value is None:
        return DASH
    unit, scale = next((each for each in (("B", 1e9), ("M", 1e6), ("k", 1e3)) if value >= 0.9995 * each[1]), ("", 1.0))
    return f"{value / scale:.3g}{unit}" if unit else f"{value:.0f}"


def figure(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    digits = 2 if abs(value) >= 1 or value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{digits}f}"


def usd(value: float | None) -> str:
    """Dollars; small sums keep two significant digits, so that a cheap run does not cost $0.00."""
    if value is None:
        return DASH
    return f"${value:,.2f}" if value == 0 or abs(value) >= 0.1 else f"${value:.2g}"


def when(value: float | None) -> str:
    """UTC to the second."""
    return DASH if value is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value))


def hours(value: float | None) -> str:
    """`3.41 h`, `12.5 min` or `8.2 s`."""
    if value is None:
        return DASH
    if value >= 1:
        return f"{value:.2f} h"
    return f"{value * 60:.1f} min" if value * 60 >= 1 else f"{value * 3600:.1f} s"


def size(value: int) -> str:
    """Decimal bytes, as disks and networks count."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= least:
            return f"{value / least:.2f} {unit}"
    return f"{value} B"


def share(value: float | None) -> str:
    """A fraction in percent."""
    return DASH if value is None else f"{100 * value:.1f} %"


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

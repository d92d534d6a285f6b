"""HTML pages that stand alone: one file, no network, charts by the bundled uPlot (MIT, templates/uplot/).

Every value is escaped, and control characters (also bidirectional ones) are removed. The Content Security Policy
allows the page's own style and its two scripts by their sha256 and nothing else: no request, no inline handler, no
style attribute. It must not compute; `page` is the name of a template.

    html = render("report.html.j2", {"facts": facts, ...}, charts)
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from orchestrator.core.formats import DASH
from orchestrator.report.pages import markdown
from orchestrator.report.pages.chart import Chart
from orchestrator.report.pages.templates import TEMPLATES, templates

if TYPE_CHECKING:
    from jinja2 import Environment

STYLES = ("uplot/uPlot.min.css", "page.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "plot.js", "page.js")


def render(template: str, values: Mapping[str, object], charts: Sequence[Chart]) -> str:
    """The whole page."""
    # Only now: few commands render a page.
    from markupsafe import Markup

    style, scripts = _style(), [_asset(name) for name in SCRIPTS]
    return (
        _templates()
        .get_template(template)
        .render(
            **values,
            charts=charts,
            policy=_policy(style, scripts),
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            chart_data=Markup(_data(charts)),
            gptctl=version("gptctl"),
            made_at=time.time(),
        )
    )


@cache
def _templates() -> Environment:
    return templates({**markdown.FORMATS, "bars": bars, "block": block}, autoescape=True, finalize=_printable)


def _policy(style: str, scripts: Sequence[str]) -> str:
    sources = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {sources}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _style() -> str:
    return "\n".join(map(_asset, STYLES))


@cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _data(charts: Sequence[Chart]) -> str:
    """JSON for a script element: nothing in it may look like a tag."""
    text = json.dumps([chart.to_json() for chart in charts], separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _printable(value: object) -> object:
    """The value without control characters and characters that reverse text; a dash for None."""
    if value is None:
        return DASH
    if type(value) is str:
        return "".join(char if char.isprintable() or char in "\n\t" else " " for char in value)
    return value


def block(value: object) -> str:
    """Foreign text of several lines, such as a sample; line breaks stay."""
    return str(_printable(str(value).replace("\r\n", "\n"))).strip("\n")


def bars(values: Sequence[float]) -> str:
    """The curve as a row of bars, for readers without scripts."""
    return markdown.spark([(0, value) for value in values])

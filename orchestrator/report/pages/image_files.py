"""Charts as PNG and SVG files for a blog or a model card, drawn by matplotlib: the extra `charts`.

The same values as on the HTML page. Import it only where you draw: matplotlib is an extra.

    draw(run_charts(facts, training), Path("charts"), run.id)        # charts/loss.png, charts/loss.svg, ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.core.errors import UserError
from orchestrator.report.pages.chart import Chart, Series

INK, SOFT, GRID = "#1c1d20", "#62656d", "#e6e6e2"
COLORS = ("#2166c4", "#d4570f", "#0b8a6a", "#a03fa0", "#b08a00", "#5a5f6b", "#c2334d", "#1c93b8")
"""As on the pages (--c0 to --c7); told apart with most kinds of colour blindness."""
SIZE_INCHES = (8.0, 4.5)
DPI = 200
STYLE = {
    "font.family": "sans-serif", "font.size": 11, "axes.edgecolor": GRID, "axes.labelcolor": SOFT, "xtick.color": SOFT,
    "ytick.color": SOFT, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.spines.top": False,
    "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0, "svg.fonttype": "none",
    "svg.hashsalt": "gptctl",
}  # fmt: skip


def draw(charts: Sequence[Chart], folder: Path, title: str, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Each chart as NAME.png and NAME.svg. Raises UserError without matplotlib, or if the folder cannot be written."""
    try:  # Only here: an extra, and half a second
        # Only now: an extra, half a second to load, and nothing else needs it.
        from matplotlib import rc_context

        # Only with it.
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("charts as files need matplotlib", "pip install 'gptctl[charts]'") from None
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            with rc_context(STYLE):
                figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="white")
                _fill(figure.add_subplot(), chart, title)
                for kind in kinds:
                    written.append(folder / f"{chart.key}.{kind}")
                    figure.savefig(written[-1], dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    except OSError as error:
        raise UserError(
            f"--charts {folder}: {error.strerror or error}", "name a folder that you can write to"
        ) from error
    return written


def _fill(axes: Any, chart: Chart, title: str) -> None:
    for number, series in enumerate(chart.series):
        known = [(x, y) for x, y in zip(chart.xs, series.values, strict=True) if x is not None and y is not None]
        if known:
            _curve(axes, [x for x, _ in known], [y for _, y in known], series, number)
    unit = f" ({chart.unit})" if chart.unit else ""
    axes.set_title(_plain(title), loc="left", fontsize=10, color=SOFT)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(f"{chart.title}{unit}")
    axes.margins(x=0.01)
    largest = max((abs(x) for x in chart.xs if x is not None), default=0)
    if largest >= 1000:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if len(chart.series) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=10)


def _curve(axes: Any, xs: Sequence[float], ys: Sequence[float], series: Series, number: int) -> None:
    label = _plain(series.label)
    color = COLORS[int(series.color.removeprefix("--c"))] if series.color else COLORS[0]
    if series.kind == "faint":
        axes.plot(xs, ys, color=color, alpha=0.3, linewidth=0.7, label=label)
    elif series.kind == "points":
        color = color if series.color else COLORS[1]
        size = 4 if len(xs) < 100 else 4 / math.log10(len(xs))
        axes.plot(xs, ys, color=color, linewidth=0.9, marker="o", markersize=size, markerfacecolor="white", label=label)
    else:
        axes.plot(xs, ys, color=color, linewidth=1.8, label=label, zorder=3 + number)


def _plain(text: str) -> str:
    """matplotlib reads $...$ as mathematics and an underscore first as `not in the legend`."""
    shown = "".join(char if char.isprintable() else " " for char in text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown

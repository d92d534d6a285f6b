"""The HTML page and the charts of a comparison, from what comparison.py says. It must not compare.

html = compare_page(comparison, compare_charts(runs), title)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.report.comparison.comparison import Compared, interpolated, validation_curve
from orchestrator.report.comparison.result import Comparison, Difference
from orchestrator.report.data_source import without_folders
from orchestrator.report.pages.chart import Chart, Series, Values
from orchestrator.report.pages.curves import clock, rounded, running_mean, window
from orchestrator.report.pages.html import render

COLORS = 8
POINTS = 400
"""Of each run's training loss, evenly spaced after smoothing."""

Curve = list[tuple[float, float]]


def compare_page(comparison: Comparison, charts: Sequence[Chart], title: str) -> str:
    """The page as text."""
    colors = {run_id: number % COLORS for number, run_id in enumerate(_in_order(charts, comparison))}
    labels = {row.id: row.label for row in comparison.runs}
    shown = replace(comparison, config_differences=[_shared(each) for each in comparison.config_differences])
    values = {**shown.to_json(), "title": title, "colors": colors, "labels": labels}
    values["judged"] = {row.id: [each.cell(row.judged) for each in comparison.judges] for row in comparison.runs}
    return render("compare.html.j2", values, charts)


def _shared(each: Difference) -> Difference:
    """Of a path its last part: the page is made to be shared."""
    texts = {run: without_folders(value) if isinstance(value, str) else value for run, value in each.values.items()}
    return replace(each, values=texts)


def _in_order(charts: Sequence[Chart], comparison: Comparison) -> Sequence[str]:
    return charts[0].order if charts else [row.id for row in comparison.runs]


def compare_charts(runs: Sequence[Compared]) -> list[Chart]:
    """Validation and training loss over tokens, validation loss over time; a chart without lines goes."""
    smooth = any(window(len(each.training.columns.get("loss", ()))) > 1 for each in runs)
    timed, unit = _timed(runs)
    kinds = (
        ("validation", "Validation loss", "tokens", "points", [validation_curve(each) for each in runs]),
        ("training", "Training loss", "tokens", "line", [training_curve(each) for each in runs]),
        ("time", "Validation loss by time", f"{unit} of training", "points", timed),
    )
    charts = []
    for key, title, x, kind, curves in kinds:
        if any(curves):
            measured = "nats per token" + (", smoothed" if smooth and key == "training" else "")
            xs, series = _lines(runs, curves, kind)
            charts.append(Chart(key, title, measured, x, xs, series, tuple(each.run.id for each in runs)))
    return charts


def _timed(runs: Sequence[Compared]) -> tuple[list[Curve], str]:
    """validation_by_hours of each in a unit that suits the longest, and that unit."""
    curves = [validation_by_hours(each) for each in runs]
    unit, per_hour = clock(max((hours for curve in curves for hours, _ in curve), default=0.0))
    return [[(hours * per_hour, loss) for hours, loss in curve] for curve in curves], unit


def _lines(runs: Sequence[Compared], curves: Sequence[Curve], kind: str) -> tuple[Values, tuple[Series, ...]]:
    xs = sorted({x for curve in curves for x, _ in curve})
    series = []
    for number, (each, curve) in enumerate(zip(runs, curves, strict=True)):
        known = dict(curve)
        values = [rounded(known.get(x)) for x in xs]
        label = each.run.name or each.run.id
        series.append(Series(label, kind, values, f"--c{number % COLORS}"))
    return [rounded(x) for x in xs], tuple(series)


def training_curve(each: Compared) -> Curve:
    """Tokens and smoothed loss, thinned evenly."""
    losses, tokens = each.training.columns.get("loss", ()), each.training.columns.get("tokens", ())
    every, end = max(1, -(-len(losses) // POINTS)), len(losses)
    kept = [index for index in range(end) if index % every == 0 or index == end - 1]
    means = running_mean(losses, window(end), at=kept)
    known = ((tokens[index], mean) for index, mean in zip(kept, means, strict=True))
    return [(seen, mean) for seen, mean in known if seen is not None and mean is not None]


def validation_by_hours(each: Compared) -> Curve:
    """Hours since the first logged line, by the machine's clock, and loss."""
    times = each.training.columns.get("time", ())
    known = [(float(step), time) for step, time in zip(each.training.steps, times, strict=True) if time is not None]
    if len(known) < 2:
        return []
    begin = known[0][1]
    placed = [(interpolated(known, point.step), point.value) for point in each.training.validations]
    return [((time - begin) / 3600, loss) for time, loss in placed if time is not None]

"""Curves as the charts show them: thinned to what a screen can show, smoothed where the label says so, rounded.

A long curve keeps the lowest and the highest point of each of PIXELS stretches, so that no spike is lost and the shape
stays. The same values go into the HTML pages and, by image_files.py, into
PNG and SVG files. It must not know how a chart looks.

    for chart in training_charts(read_training(mirror)):
        chart.title, chart.xs, chart.series
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from orchestrator.report.metrics import Point, Training
from orchestrator.report.pages.chart import Chart, Series, Values

PIXELS = 1000
"""Stretches of a curve at most; each keeps two points at most."""
SMOOTH_PART = 100
"""The mean runs over a hundredth of the lines."""
LEAST_TO_SMOOTH = 60


class PaidStage(Protocol):
    """A stage of a report: when it began, how long it took, what it cost."""

    @property
    def started_at(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def cost_usd(self) -> float: ...


def training_charts(training: Training) -> list[Chart]:
    """Loss, learning rate, gradient norm, throughput and memory over the steps; a chart without a value is omitted."""
    charts = [
        _loss(training),
        _chart("lr", "Learning rate", "", training),
        _chart("grad_norm", "Gradient norm", "before clipping", training, smooth=True),
        _chart("tokens_per_second", "Throughput", "tokens per second", training, smooth=True),
        _chart("memory_gib", "Memory", "GiB", training),
    ]
    return [chart for chart in charts if not all(each.is_empty for each in chart.series)]


def _loss(training: Training) -> Chart:
    chart = _chart("loss", "Loss", "nats per token", training, label="training loss", smooth=True)
    return with_points(chart, "validation loss", training.validations)


def _chart(key: str, title: str, unit: str, training: Training, *, label: str = "", smooth: bool = False) -> Chart:
    """A column over the steps; with `smooth`, and lines enough, it is pale behind its own mean."""
    values = training.columns.get(key, ())
    kept = extremes(values)
    width = window(len(values)) if smooth else 1
    series = [_series(label or title.lower(), "line" if width == 1 else "faint", [values[index] for index in kept])]
    if width > 1:
        series.append(_series(f"mean of {width} lines", "line", running_mean(values, width, at=kept)))
    steps = [training.steps[index] for index in kept]
    return Chart(key, title, unit, "step", steps, tuple(series))


def _series(label: str, kind: str, values: Values) -> Series:
    return Series(label, kind, [rounded(value) for value in values])


def with_points(chart: Chart, label: str, points: Iterable[Point]) -> Chart:
    """The chart with one more series that has its own, fewer xs; where it has none it is None."""
    own = {point.step: point.value for point in thinned(list(points), PIXELS)}
    xs = sorted({*(int(x) for x in chart.xs if x is not None), *own})
    places = {x: index for index, x in enumerate(chart.xs)}
    series = [
        replace(each, values=[each.values[places[x]] if x in places else None for x in xs]) for each in chart.series
    ]
    return replace(chart, xs=xs, series=(*series, _series(label, "points", [*map(own.get, xs)])))


def cost_chart(stages: Sequence[PaidStage]) -> Chart | None:
    """Dollars over the time since the first stage began; None if nothing was paid."""
    if not any(stage.cost_usd for stage in stages):
        return None
    begin = stages[0].started_at
    xs, values, spent = [0.0], [0.0], 0.0
    for stage in stages:
        start_h = (stage.started_at - begin) / 3600
        if start_h > xs[-1]:
            xs.append(start_h)
            values.append(spent)
        spent += stage.cost_usd
        xs.append(max(xs[-1], start_h + stage.seconds / 3600))
        values.append(spent)
    unit, per_hour = clock(xs[-1])
    known = [rounded(x * per_hour) for x in xs]
    return Chart("cost", "Cost", "USD before tax", unit, known, (_series("cost", "line", values),))


def clock(hours: float) -> tuple[str, float]:
    """The unit in which an axis of that length reads well, and how many of it an hour has."""
    units = (("seconds", 3600.0), ("minutes", 60.0))
    return next(((unit, per_hour) for unit, per_hour in units if hours * per_hour < 120), ("hours", 1.0))


def extremes(values: Values, pixels: int = PIXELS) -> list[int]:
    """Indices of the points to keep: all of a short curve, else the lowest and highest of each stretch, and both ends.

    A stretch is a power of two long, so that a curve that grows keeps its points: the live page sends new ones alone. A
    thinned curve omits points without a value.
    """
    if len(values) <= 2 * pixels:
        return [*range(len(values))]
    kept = {0, len(values) - 1}
    size = 1 << (-(-len(values) // pixels) - 1).bit_length()
    for start in range(0, len(values), size):
        stop = min(start + size, len(values))
        known = [value for value in values[start:stop] if value is not None]
        if known:
            kept.add(values.index(min(known), start, stop))
            kept.add(values.index(max(known), start, stop))
    return sorted(kept)


def window(lines: int) -> int:
    """How many lines the mean runs over: an odd number, 1 if there is too little to smooth."""
    return lines // SMOOTH_PART // 2 * 2 + 1 if lines >= 3 * SMOOTH_PART else 5 if lines >= LEAST_TO_SMOOTH else 1


def running_mean(values: Values, width: int, at: Iterable[int] | None = None) -> list[float | None]:
    """Centred; at both ends over what is there. Lines without a value do not count. `at`: these indices only."""
    sums = array("d", itertools.accumulate((value or 0.0 for value in values), initial=0.0))
    half, end = width // 2, len(values)
    counts: Sequence[int] = range(end + 1)
    if any(value is None for value in values):
        counts = array("q", itertools.accumulate((value is not None for value in values), initial=0))
    spans = ((max(0, index - half), min(end, index + half + 1)) for index in (range(end) if at is None else at))
    return [
        (sums[stop] - sums[start]) / (counts[stop] - counts[start]) if counts[stop] > counts[start] else None
        for start, stop in spans
    ]


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most about `most` points, evenly spaced, the last one always among them."""
    every = max(1, -(-len(points) // most))
    return [point for index, point in enumerate(points) if index % every == 0 or index == len(points) - 1]


def rounded(value: float | None) -> float | None:
    """To six significant digits: more than a chart can show, and a third of the bytes."""
    return None if value is None else float(f"{value:.6g}")

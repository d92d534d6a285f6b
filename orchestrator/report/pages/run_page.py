"""The HTML page of one run: the Markdown page's twin, from the same facts, with curves, events and the end of the log.

It must not compute figures; it adds order and layout. The page is made to be shared: of a path on a disk it shows the
last part.

    html = run_page(report, charts, run.recipe_data, ledger.events(run.id), mirror)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.core.events import Event
from orchestrator.report.data_source import hidden, private_places, without_folders
from orchestrator.report.evaluations import CHOICES, SLICE, EvaluationRow
from orchestrator.report.pages.chart import Chart
from orchestrator.report.pages.html import render
from orchestrator.report.run_report import RunReport, StageTime, shared
from trainer.run_files import LOG

MOST_EVENTS = 500
LOG_BYTES = 8_000
TIMELINE_WIDTH = 1000
LEAST_WIDTH = 4
"""In the timeline: a stage of a second stays visible beside one of a day."""


def run_page(
    report: RunReport,
    charts: Sequence[Chart],
    recipe_data: Mapping[str, object],
    events: Sequence[Event],
    mirror: Path,
) -> str:
    """The page as text."""
    places = private_places(recipe_data, mirror.parent.parent)
    values = {
        **shared(report, places),
        "test": final_slice(report.evaluations),
        "total": report.parts[-1],
        "timeline": _timeline(report.stages),
        "smoothing": smoothing(charts),
        "config": [(key, without_folders(value)) for key, value in flat(hidden(recipe_data, places))],
        "chosen": any(each.kind == CHOICES for each in report.evaluations),
        "events": [replace(event, text=without_folders(hidden(event.text, places))) for event in events[-MOST_EVENTS:]],
        "events_left_out": max(0, len(events) - MOST_EVENTS),
        "log": without_folders(hidden(_end_of(mirror / LOG), places)),
    }
    return render("report.html.j2", values, charts)


def final_slice(evaluations: Sequence[EvaluationRow]) -> EvaluationRow | None:
    """The test slice that the page leads with: the first one measured at the latest step."""
    known = [each for each in evaluations if each.kind == SLICE and each.loss is not None]
    return next((each for each in known if each.step == known[-1].step), None)


def smoothing(charts: Sequence[Chart]) -> str:
    """The caption of the loss chart: it says what is smoothed."""
    labels = [series.label for chart in charts if chart.key == "loss" for series in chart.series]
    means = [label for label in labels if label.startswith("mean of")]
    thin = "long runs show the lowest and highest line of each stretch"
    if not means:
        return f"Every logged line; {thin}. Drag to zoom, double-click to go back."
    return f"Pale: every logged line ({thin}). Strong: {means[0]}, centred. Drag to zoom, double-click to go back."


def flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`("train.seed", "42")` for every value of nested tables that is set."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        elif item is not None:
            yield prefix + key, json.dumps(item, ensure_ascii=False)


def _timeline(stages: Sequence[StageTime]) -> list[dict[str, object]]:
    """Each stage with its place on one common axis of time."""
    if not stages:
        return []
    begin = min(stage.started_at for stage in stages)
    end = max(stage.started_at + stage.seconds for stage in stages)
    scale = TIMELINE_WIDTH / ((end - begin) or 1.0)
    placed = []
    for stage in stages:
        width = max(LEAST_WIDTH, round(stage.seconds * scale, 1))
        x = min(round((stage.started_at - begin) * scale, 1), TIMELINE_WIDTH - width)
        placed.append({**vars(stage), "x": max(0.0, x), "width": width})
    return placed


def _end_of(path: Path) -> str:
    """The last whole lines; empty without a log."""
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(max(0, size_bytes - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text if size_bytes <= LOG_BYTES else text.partition("\n")[2]

"""What an open page is told, as server-sent events: everything once, then only what has changed since.

`state`: the parts of the whole, runs and sweeps by id beside their order. `run`: the parts of the open run; of a curve
that grew, the new points alone. `beat`: nothing, so that a page knows that gptctl is alive. A page that slept is told
the newest alone when it reads again.

Example: `StreamingResponse(changes(sight, None, "quickstart-1130"), media_type="text/event-stream")`
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool

from orchestrator.cli.ui.actions import Actions
from orchestrator.cli.ui.page_contents import PageContents
from orchestrator.core.errors import GptctlError

LOOK_EVERY_S = 0.5
BEAT_EVERY_S = 10.0
CURVES_PART = 0.1
"""Of the time at most: the curves of a million lines take a second, and are drawn again every ten."""


@dataclass
class Told:
    """What one page knows."""

    parts: dict[str, str] = field(default_factory=dict)
    charts: list[dict[str, Any]] | None = None

    def news(self, values: Mapping[str, Any], group: str = "") -> dict[str, Any]:
        """Those that it does not know yet; it knows them then."""
        texts = {key: json.dumps(value) for key, value in values.items()}
        new = {key: values[key] for key, text in texts.items() if self.parts.get(f"{group}/{key}") != text}
        self.parts.update({f"{group}/{key}": texts[key] for key in new})
        return new

    def state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """`runs` and `sweeps` are those that changed, by id."""
        news = self.news({key: value for key, value in state.items() if key not in ("runs", "sweeps")})
        for group in ("runs", "sweeps"):
            by_id = {each["id"]: each for each in state[group]}
            news |= {group: self.news(by_id, group), **self.news({f"{group}_order": [*by_id]})}
        return news

    def run(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """`charts` whole, or `tails`: of each chart the place from which on it differs, and what is there now."""
        news = self.news({key: value for key, value in run.items() if key != "charts"}, "run")
        charts, before = [*run["charts"]], self.charts
        self.charts = charts
        if before is None or [*map(_shape, before)] != [*map(_shape, charts)]:
            return {**news, "charts": charts}
        return {**news, "tails": [*map(tail, before, charts)]} if before != charts else news


def _shape(chart: Mapping[str, Any]) -> tuple[object, ...]:
    return chart["key"], *((each["label"], each["kind"]) for each in chart["series"])


def tail(before: Mapping[str, Any], chart: Mapping[str, Any]) -> dict[str, Any]:
    """`{"from": place, "xs": [...], "series": [[...], ...]}` of a chart with the same series."""
    pairs = [(before["xs"], chart["xs"])]
    pairs += [(old["values"], new["values"]) for old, new in zip(before["series"], chart["series"], strict=True)]
    start = min(_same(old, new) for old, new in pairs)
    xs, *series = (new[start:] for _, new in pairs)
    return {"from": start, "xs": xs, "series": series}


def _same(old: Sequence[object], new: Sequence[object]) -> int:
    """How many places at the beginning are alike."""
    found = (place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    return next(found, min(len(old), len(new)))


def whole_state(sight: PageContents, actions: Actions | None) -> dict[str, Any]:
    """The state, and what the page may do."""
    return {**sight.state, "may_act": actions is not None, "actions": actions.to_json() if actions else []}


async def changes(sight: PageContents, actions: Actions | None, run_id: str | None) -> AsyncIterator[str]:
    """The events, until the page is closed."""
    told, number, mark = Told(), 0, None
    beat_at = curves_at = 0.0
    sight.pages += 1
    try:
        while True:
            if sight.number != number or (number and actions and actions.started):
                number = sight.number
                if any((news := told.state(whole_state(sight, actions))).values()):
                    yield _event("state", news)
            latest = (number, sight.mark_of(run_id)) if run_id and number else None
            if run_id and latest != mark and time.monotonic() >= curves_at:
                began = time.monotonic()
                with contextlib.suppress(GptctlError, OSError):
                    found = await run_in_threadpool(sight.run, run_id)
                    mark = latest
                    yield _event("run", {"id": found["id"], **told.run(found)})
                curves_at = time.monotonic() + (time.monotonic() - began) * (1 / CURVES_PART - 1)
            if time.monotonic() - beat_at > BEAT_EVERY_S:
                beat_at = time.monotonic()
                yield _event("beat", {})
            await asyncio.sleep(LOOK_EVERY_S)
    finally:
        sight.pages -= 1


def _event(kind: str, data: Mapping[str, Any]) -> str:
    """With the moment of this computer, from which a page counts on."""
    return f"event: {kind}\ndata: {json.dumps({**data, 'now': time.time()}, separators=(',', ':'))}\n\n"

"""What the live view shows, folded from events: a pure value, so that it can be tested without a terminal.

Example::

    view = View(stages=("sync", "follow"))
    for event in events:
        view = fold(view, event)
    view.step, view.loss
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from orchestrator.cli.screen.foreign import clean, finite
from orchestrator.core.events import Event
from orchestrator.core.formats import count, dollars, duration, loss, percent, size

STAGES = ("acquire", "provision", "sync", "launch", "follow", "fetch", "report", "release")
LOG_LINES = 5
MOST_LOSSES = 256
"""Of the curve; beyond it every second one goes, so that the curve still shows the whole run."""
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"


@dataclass(frozen=True)
class Mark:
    """One stage in the list: its state and, once known, how long it took."""

    state: str = PENDING
    started_at: float | None = None
    took_s: float | None = None


@dataclass(frozen=True)
class View:
    """Everything on screen during a run."""

    title: str = ""
    stages: tuple[str, ...] = STAGES
    marks: Mapping[str, Mark] = field(default_factory=dict)
    metric: Mapping[str, object] = field(default_factory=dict)
    progress: Mapping[str, object] = field(default_factory=dict)
    notice: str = ""
    doing: str = ""
    """What the training does before its first step."""
    doing_since: float | None = None
    losses: tuple[float, ...] = ()
    log: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return int(finite(self.metric.get("step")) or 0)

    @property
    def total_steps(self) -> int:
        return int(finite(self.metric.get("total_steps")) or 0)

    @property
    def loss(self) -> float | None:
        return finite(self.metric.get("loss"))


def fold(view: View, event: Event) -> View:
    """The view after one more event. Unknown kinds change nothing."""
    if event.kind in _FOLDS:
        return _FOLDS[event.kind](view, event)
    return view


def _stage(view: View, event: Event) -> View:
    stage = event.stage or ""
    before = view.marks.get(stage, Mark())
    if event.kind == "stage_started":
        mark = Mark(RUNNING, event.time)
    else:
        took_s = None if before.started_at is None else event.time - before.started_at
        mark = Mark(DONE if event.kind == "stage_finished" else FAILED, before.started_at, took_s)
    return replace(view, marks={**view.marks, stage: mark}, progress={}, notice="")


def _metric(view: View, event: Event) -> View:
    # A line without a validation loss keeps the last one on screen.
    known = {key: value for key, value in event.data.items() if value is not None}
    now = finite(known.get("loss"))
    losses = view.losses if now is None else with_loss(view.losses, now)
    doing = view.doing if now is None else ""
    return replace(view, metric={**view.metric, **known}, losses=losses, doing=doing)


def with_loss(losses: tuple[float, ...], loss: float) -> tuple[float, ...]:
    """The curve with one more value, thinned once it is long."""
    return (*losses, loss) if len(losses) < MOST_LOSSES else (*losses[::2], loss)


def _doing(view: View, event: Event) -> View:
    return replace(view, doing=clean(event.text), doing_since=event.time, progress={})


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """The values as a line of bars, each the mean of its part; empty for fewer than two."""
    width = min(width, len(values))
    if width < 2:
        return ""
    edges = [at * len(values) // width for at in range(width + 1)]
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(bars) - 1) / ((high - low) or 1.0)
    return "".join(bars[round((each - low) * scale)] for each in means)


_FOLDS: Mapping[str, Callable[[View, Event], View]] = {
    "stage_started": _stage,
    "stage_finished": _stage,
    "stage_failed": _stage,
    "metric": _metric,
    "doing": _doing,
    "progress": lambda view, event: replace(view, progress=dict(event.data)),
    "log": lambda view, event: replace(view, log=(*view.log, clean(event.text).rstrip())[-LOG_LINES:]),
    "said": lambda view, event: replace(view, notice=clean(event.text)),
    "seen": lambda view, event: replace(view, notice=clean(event.text)),
}


def metric_line(metric: Mapping[str, object]) -> str:
    """`loss 2.345  val 2.456  33.6k tok/s  MFU 38.2%  $0.12  ETA 1m 20s`; unknown values are omitted."""
    value = {key: finite(item) for key, item in metric.items()}
    parts = [
        f"loss {loss(value['loss'])}" if value.get("loss") is not None else "",
        f"val {loss(value['val_loss'])}" if value.get("val_loss") is not None else "",
        f"{count(value['tokens_per_second'])} tok/s" if value.get("tokens_per_second") else "",
        f"MFU {percent(value['mfu'])}" if value.get("mfu") else "",
        dollars(value["cost_usd"]) if value.get("cost_usd") is not None else "",
        f"ETA {duration(value['eta_s'])}" if value.get("eta_s") is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def spending_line(metric: Mapping[str, object]) -> str:
    """`$0.12  ETA 1m 20s`: what the trainer's own line of the same step does not say."""
    return metric_line({key: metric.get(key) for key in ("cost_usd", "eta_s")})


def progress_line(progress: Mapping[str, object]) -> str:
    """`data: 1.20 GB of 2.50 GB  (48%)  112.00 MB/s  ETA 12s`, or a job's own words: `install: a new environment`."""
    what = clean(str(progress.get("what") or "moving"))
    value = {key: finite(item) for key, item in progress.items()}
    in_bytes = "bytes_done" in value or progress.get("unit") in ("B", "bytes")
    amount = size if in_bytes else _plain
    done = value.get("done") or value.get("bytes_done") or value.get("documents")
    total = value.get("total") or value.get("bytes_total") or value.get("of")
    rate, eta_s = value.get("rate"), value.get("eta_s")
    if not done and not total:
        text = clean(str(progress.get("text") or ""))
        return f"{what}: {text}" if text else what
    parts = [
        f"{what}: {amount(done or 0)}" + (f" of {amount(total)}" if total else ""),
        f"({100 * (done or 0) / total:.0f}%)" if total else "",
        f"{amount(rate)}/s" if rate else "",
        f"ETA {duration(eta_s)}" if eta_s is not None else "",
        f"{count(value['tokens'])} tokens" if value.get("tokens") else "",
        f"{count(value['tokens_per_second'])} tok/s" if value.get("tokens_per_second") else "",
    ]
    return "  ".join(part for part in parts if part)


def _plain(value: float | None) -> str:
    return f"{value or 0:,.0f}"

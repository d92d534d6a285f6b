"""What a run reports: metrics.jsonl, events.jsonl, log lines for people, and the time each part takes.

Each line is written and flushed at once, so a killed run keeps every line. It must not compute anything about training,
and waits for the GPU only in `Window.read`.

Example::

    journal = Journal(run_folder, enabled=world.leads)
    journal.event("started", 0, micro_batch=12)
    journal.metrics({"step": 10, "loss": 9.1, ...})
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import json
import math
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from trainer.contract import RunConfig
from trainer.run_files import EVENTS, METRICS, MetricLine
from trainer.tokens.batches import course_of
from trainer.training.failures import Expendable
from trainer.training.log_lines import event_line, metrics_line
from trainer.training.ranks import World

GIB = 1024**3
SHOWN = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_gib")
"""What of a metrics line is in the log and in TensorBoard."""


class Journal:
    """The two .jsonl files of a run folder; disabled on all ranks but rank 0. Safe to use from the saver's thread."""

    def __init__(self, run_folder: Path, enabled: bool = True) -> None:
        self.run_folder = run_folder
        self.enabled = enabled
        self.lock = threading.Lock()
        self.unwritten: dict[str, str] = {}
        self.stdout_open = True

    @functools.cached_property
    def tensorboard(self) -> Any:
        """A TensorBoard writer beside metrics.jsonl, or None where the package is not installed."""
        if not self.enabled or importlib.util.find_spec("tensorboard") is None:
            return None
        return importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(self.run_folder / "tensorboard"))

    def event(self, name: str, step: int, **fields: object) -> None:
        """Appends {"event", "time", "step", ...} to events.jsonl and a line to the log."""
        self._append(EVENTS, {"event": name, "time": round(time.time(), 3), "step": step, **fields})
        self.say(event_line(name, step, fields))

    def metrics(self, line: MetricLine) -> None:
        """Appends a line to metrics.jsonl, the log and TensorBoard."""
        self._append(METRICS, line)
        shown = {key: value for key, value in line.items() if key in SHOWN}
        self.say(metrics_line(line["step"], shown))
        with Expendable(self.event, line["step"], "TensorBoard is off"):
            self._draw(shown, line["step"])
            return
        self.tensorboard = None

    def _draw(self, values: Mapping[str, object], step: int) -> None:
        if self.tensorboard is not None:
            for key, value in values.items():
                self.tensorboard.add_scalar(key, value, step)
            self.tensorboard.flush()

    def say(self, text: str) -> None:
        """Prints one line on stdout, which is the log. A closed pipe or a full disk does not end a run."""
        if self.enabled and self.stdout_open:
            try:
                print(text.rstrip(), flush=True)
            except OSError:
                self.stdout_open = False

    def truncate(self, last_step: int) -> None:
        """Before resuming from last_step: drops a torn last line of both files, and metrics of steps to repeat."""
        if self.enabled:
            _truncate(self.run_folder / EVENTS, last_step=None)
            _truncate(self.run_folder / METRICS, last_step)

    def _append(self, name: str, line: Mapping[str, object]) -> None:
        if not self.enabled:
            return
        text = json.dumps({key: _finite(value) for key, value in line.items()}) + "\n"
        with self.lock:
            waiting = self.unwritten.pop(name, "") + text
            if not _append_whole(self.run_folder / name, waiting.encode()):
                self.unwritten[name] = waiting


def _append_whole(path: Path, data: bytes) -> bool:
    """Appends all of data or nothing. On a full disk returns False: the caller keeps the line for the next call."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(data) == len(data):
                return True
    except OSError:
        pass
    os.truncate(path, before)
    return False


def read_lines(path: Path) -> list[dict[str, object]]:
    """The JSON lines of a file up to the first that is torn; none when it does not exist."""
    lines = itertools.takewhile(lambda line: line is not None, map(_parse_line, _raw_lines(path)))
    return [line for line in lines if line is not None]


def _raw_lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _parse_line(line: bytes) -> dict[str, object] | None:
    """None for what a kill or a power cut leaves: half a line, or zeros."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _truncate(path: Path, last_step: int | None) -> None:
    good = 0
    for line in _raw_lines(path):
        value = _parse_line(line)
        if value is None or (last_step is not None and cast(int, value["step"]) > last_step):
            break
        good += len(line)
    if path.exists():
        os.truncate(path, good)


def _finite(value: object) -> object:
    """JSON has no NaN: it becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


FORWARD = "forward"
"""Of the part `forward_backward`: nothing in it waits for another rank."""
SLOW, SLOW_LINES = 1.3, 20
"""A node is slow that takes so many times what the others take, for so many log lines in a row."""


class PartClock:
    """Where the time goes: `mark(part)` assigns the time since the last mark to a part.

    On CUDA the marks are events on the stream, read once they have passed, so timing never makes the host wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []
        self.mark("start")

    def mark(self, part: str) -> None:
        """Assigns everything since the last mark to part."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append((part, event))
        else:
            self.marks.append((part, time.perf_counter()))

    def take(self) -> list[tuple[str, Any]]:
        """The marks so far; the next ones count from the last of them."""
        taken, self.marks = self.marks, self.marks[-1:]
        return taken

    def seconds(self, marks: Sequence[tuple[str, Any]]) -> dict[str, float]:
        """Seconds per part between these marks. On CUDA the last of them must have passed."""
        seconds: dict[str, float] = {}
        for (_, before), (part, after) in itertools.pairwise(marks):
            passed = before.elapsed_time(after) / 1000 if self.cuda else after - before
            seconds[part] = seconds.get(part, 0.0) + passed
        return seconds


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process: reserved on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


@dataclass
class StepCounts:
    """Skipped and clipped steps, counted on the device and read at logging steps only."""

    skipped: Tensor
    streak: Tensor
    longest_streak: Tensor
    clipped: Tensor

    @staticmethod
    def zeros(device: torch.device) -> StepCounts:
        """All zero."""
        return StepCounts(*torch.zeros(4, device=device).unbind())

    def add(self, nonfinite: Tensor, clipped: Tensor) -> None:
        """Counts one step: both are scalars, 0 or 1."""
        self.skipped = self.skipped + nonfinite
        self.streak = (self.streak + 1) * nonfinite
        self.longest_streak = torch.maximum(self.longest_streak, self.streak)
        self.clipped = self.clipped + clipped


class Noted(NamedTuple):
    """What a step leaves for its log line. `values`, in host memory, are good once the last of `marks` has passed."""

    step: int
    rate: float
    asked_to_stop: bool
    values: Tensor
    """Loss, gradient norm, skipped steps, the longest streak of them, clipped steps."""
    marks: list[tuple[str, Any]]
    """Those since the last line; none where the step gets no line."""


class Reading(NamedTuple):
    """The numbers of a noted step, of this rank."""

    loss: float
    norm: float
    skipped: int
    longest_streak: int
    clipped: int


class Window:
    """The steps since the last log line: their time by part, and the rates that follow from it."""

    def __init__(self, config: RunConfig, world: World, step: int) -> None:
        self.config, self.world, self.step = config, world, step
        self.clock = PartClock(world.device)
        self.course = course_of(config)

    def note(
        self, step: int, loss: Tensor, norm: Tensor, rate: float, counts: StepCounts, *, stop: bool, line: bool = True
    ) -> Noted:
        """Sends the step's numbers to the host and returns at once: they are read when the next step is on its way.

        line: whether it ends the window, because a log line tells of it.
        """
        numbers = torch.stack([loss, norm, counts.skipped, counts.longest_streak, counts.clipped])
        values = torch.empty(len(numbers), pin_memory=self.clock.cuda)
        values.copy_(numbers, non_blocking=True)
        if not line:
            return Noted(step, rate, stop, values, [])
        counts.clipped = torch.zeros_like(counts.clipped)
        self.clock.mark("log")
        return Noted(step, rate, stop, values, self.clock.take())

    def read(self, noted: Noted) -> Reading:
        """The numbers. On CUDA it waits for that step, and not for one that was launched since."""
        if self.clock.cuda and noted.marks:
            noted.marks[-1][1].synchronize()
        elif self.clock.cuda:
            torch.cuda.synchronize()
        loss, norm, *counted = noted.values.tolist()
        return Reading(loss, norm, *map(int, counted))

    def line(self, noted: Noted, reading: Reading, mean_loss: float) -> MetricLine:
        """A line of metrics.jsonl. Rates count training time only, without validation and saving."""
        seconds, step = self.clock.seconds(noted.marks), noted.step
        seconds["forward_backward"] = seconds.get("forward_backward", 0.0) + seconds.pop(FORWARD, 0.0)
        training_s = sum(seconds.get(part, 0.0) for part in ("data", "forward_backward", "optimizer", "log"))
        tokens, flop = self.course.tokens(step), self.course.flop(self.config.model, self.step, step)
        tokens_per_second = (tokens - self.course.tokens(self.step)) / max(training_s, 1e-9)
        steps, self.step = step - self.step, step
        peak = self.config.peak_flops_per_gpu * self.world.size
        return {
            "step": step,
            "tokens": tokens,
            "loss": mean_loss,
            "lr": noted.rate,
            "grad_norm": reading.norm,
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": flop / max(training_s, 1e-9) / peak if peak else 0.0,
            "memory_gib": round(memory_gib(self.world.device), 3),
            "time": round(time.time(), 3),
            "skipped_steps": reading.skipped,
            "clipped_share": reading.clipped / steps,
            "seconds": {part: round(value, 6) for part, value in seconds.items()},
        }


class SlowNode:
    """Which of several nodes holds up the others: they wait for each other in every step, so only what each computes
    before that tells. The time of the forward passes is compared, by the median of a node's ranks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lines: dict[int, int] = {}
        self.said: set[int] = set()
        self.times = 0.0

    def own(self, noted: Noted, clock: PartClock) -> list[float]:
        """This rank's seconds at its place, to be summed over all; empty on one node."""
        if self.world.nodes == 1:
            return []
        spent_s = clock.seconds(noted.marks).get(FORWARD, 0.0) if noted.marks else 0.0
        return [spent_s * (rank == self.world.rank) for rank in range(self.world.size)]

    def node(self, forward_s: Sequence[float]) -> int | None:
        """The node that has been slow for SLOW_LINES lines in a row, once."""
        if not any(forward_s):
            return None  # no log line was due
        each = self.world.size // self.world.nodes
        nodes = [statistics.median(forward_s[at : at + each]) for at in range(0, len(forward_s), each)]
        for node, spent_s in enumerate(nodes):
            others = statistics.median([*nodes[:node], *nodes[node + 1 :]])
            slow = spent_s > SLOW * others > 0
            self.lines[node] = self.lines.get(node, 0) + 1 if slow else 0
            if self.lines[node] == SLOW_LINES and node not in self.said:
                self.said.add(node)
                self.times = spent_s / others
                return node
        return None

    def words(self, node: int) -> str:
        """`node 1 is slow: ...`."""
        return f"node {node} is slow: its forward passes take {self.times:.1f}x those of the others, which wait for it"

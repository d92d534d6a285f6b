"""Reads what the trainer wrote, from the mirror on this side: metrics.jsonl and events.jsonl.

A mirror may end in the middle of a line, and a resumed training writes a step again: it skips lines that are not JSON
objects, and of two lines for one step the later one counts. It must neither write nor import anything heavy.

    read_training(mirror).best_validation
"""

from __future__ import annotations

import json
import math
import os
import statistics
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from trainer.run_files import EVENT_SAMPLED, EVENT_STARTED, EVENT_VALIDATED, EVENTS, METRICS

CURVES = ("loss", "lr", "grad_norm", "tokens_per_second", "memory_gib", "tokens", "time", "mfu")

MANY_LINES = 200_000
"""A file of more is held as machine numbers, and its points are thinned. A run has some ten thousand."""
MOST_POINTS = 10_000
MANY_BYTES = 100 * MANY_LINES
SINGLE = ("lr", "grad_norm", "tokens_per_second", "memory_gib", "mfu")
"""Columns that a file of more than MANY_BYTES is held in with four bytes a number: a chart shows six digits of them."""

Column = Sequence[float | None]


class Point(NamedTuple):
    """A value at a step."""

    step: int
    value: float


@dataclass(frozen=True)
class Started:
    """The trainer's last `started` event, as far as reports need it; None for what it does not say."""

    torch: str | None = None
    device: str | None = None
    ranks: int | None = None
    micro_batch: int | None = None
    compiled: bool | None = None
    attention: str | None = None
    """The kernel of scaled_dot_product_attention."""

    @staticmethod
    def from_json(event: Mapping[str, object]) -> Started:
        """Values of another type count as missing."""
        torch, device, attention = (
            each if isinstance(each, str) else None for each in map(event.get, ("torch", "device", "attention"))
        )
        ranks, micro_batch = (each if type(each) is int else None for each in map(event.get, ("ranks", "micro_batch")))
        compiled = event.get("compiled")
        return Started(torch, device, ranks, micro_batch, compiled if isinstance(compiled, bool) else None, attention)


@dataclass(frozen=True)
class Training:
    """What the lines say. None for what they do not say; nothing is estimated."""

    losses: tuple[Point, ...] = ()
    validations: tuple[Point, ...] = ()
    step: int = 0
    """The last step with a line of metrics."""
    tokens: int = 0
    """Tokens seen up to that step."""
    tokens_per_second: float | None = None
    """Median over the logged lines, so that checkpoints and validations do not blur it."""
    mfu: float | None = None
    """Median over the logged lines; None if the GPU's peak is unknown (the trainer writes 0 then)."""
    memory_gib: float | None = None
    """The most that any line reports; of the process without a GPU."""
    samples: tuple[Mapping[str, object], ...] = ()
    """The trainer's `sampled` events."""
    steps: Sequence[int] = ()
    """Of the lines of metrics, rising."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """The numbers of those lines by key (CURVES), one per step; None where a line has no finite number."""
    started: Started = field(default_factory=Started)
    accuracies: Sequence[Point] = ()
    """Of a classifier, at the steps that were validated."""

    @property
    def first_loss(self) -> float | None:
        return self.losses[0].value if self.losses else None

    @property
    def last_loss(self) -> float | None:
        return self.losses[-1].value if self.losses else None

    @property
    def last_val_loss(self) -> float | None:
        return self.validations[-1].value if self.validations else None

    @property
    def last_accuracy(self) -> float | None:
        """Of a classifier on its held-out examples; None without one."""
        return self.accuracies[-1].value if self.accuracies else None

    @property
    def best_validation(self) -> Point | None:
        return min(self.validations, key=lambda point: point.value, default=None)


def read_training(folder: Path, keys: Sequence[str] = CURVES) -> Training:
    """Reads a run folder or its mirror; an empty or missing one gives an empty Training. keys: the columns to keep."""
    return Growing(folder, keys).training()


class Growing:
    """A run folder that is read again and again while it grows: of a million lines, only those that are new."""

    def __init__(self, folder: Path, keys: Sequence[str] = CURVES) -> None:
        self._table, self._events = Table(folder / METRICS, keys), list[dict[str, object]]()
        self._metrics = Tail(folder / METRICS, self._table.clear)
        self._told = Tail(folder / EVENTS, self._events.clear)

    def training(self) -> Training:
        """As the files are now."""
        for row in self._metrics.lines():
            self._table.add(row)
        self._events += self._told.lines()
        return _training(*self._table.columns(), self._events)


def _training(
    steps: Sequence[int], columns: Mapping[str, Column], events: Sequence[Mapping[str, object]]
) -> Training:  # fmt: skip
    measured, validated = _validated(events)
    return Training(
        losses=_points(steps, columns["loss"]),
        validations=_points(measured, _numbers(validated[step].get("val_loss") for step in measured)),
        accuracies=_points(measured, _numbers(validated[step].get("accuracy") for step in measured)),
        step=steps[-1] if steps else 0,
        tokens=int(columns["tokens"][-1] or 0) if steps else 0,
        tokens_per_second=_median(columns["tokens_per_second"]),
        mfu=_median(columns["mfu"]),
        memory_gib=max(filter(None, columns["memory_gib"]), default=None),
        samples=tuple(row for row in events if row.get("event") == EVENT_SAMPLED),
        steps=steps,
        columns=columns,
        started=Started.from_json(next((row for row in reversed(events) if row.get("event") == EVENT_STARTED), {})),
    )


def read_validations(folder: Path) -> tuple[Point, ...]:
    """The validation losses alone: the events are few, the metrics may be a million lines."""
    measured, validated = _validated(list(read_lines(folder / EVENTS)))
    return _points(measured, _numbers(validated[step].get("val_loss") for step in measured))


def _validated(events: Sequence[Mapping[str, object]]) -> tuple[list[int], dict[int, Mapping[str, object]]]:
    """The steps that were validated, rising, and the last event of each."""
    steps_of_events = ((_step(row), row) for row in events if row.get("event") == EVENT_VALIDATED)
    validated = {step: row for step, row in steps_of_events if step is not None}
    return sorted(validated), validated


class Tail:
    """What a file of JSON lines has gained since the last look. `again` is called where it is another file than it was,
    or shorter: all of it is new then."""

    def __init__(self, path: Path, again: Callable[[], None] = lambda: None) -> None:
        self._path, self._again = path, again
        self._file: tuple[int, int] | None = None
        self._offset = 0

    def lines(self) -> Iterator[dict[str, object]]:
        """The whole lines that hold an object, in order; a torn last one is looked at again next time."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            found = os.fstat(file.fileno())
            if (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset:
                self._file, self._offset = (found.st_dev, found.st_ino), 0
                self._again()
            file.seek(self._offset)
            for line in file:
                value = _parse(line)
                if value is None and not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                if value is not None:
                    yield value


def read_lines(path: Path) -> Iterator[dict[str, object]]:
    """The whole lines of a JSON lines file that hold an object, in order; nothing for a missing file."""
    return Tail(path).lines()


def _parse(line: bytes) -> dict[str, object] | None:
    try:  # a torn line never parses: an object is whole with its last brace
        text = line.decode().strip()
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) and isinstance(value, dict) else None


def _no_number(_: str) -> None:
    """NaN and Infinity are not JSON, though Python writes them; a report that repeated them could not be read."""


_DECODER = json.JSONDecoder(parse_constant=_no_number)
"""Created once: with an option, json.loads creates one for each line."""


class LongColumn:
    """A column of a long file as a Sequence of numbers and None, as machine numbers: NaN stands for None."""

    def __init__(self, numbers: array[float]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[float | None]:
        return (number if math.isfinite(number) else None for number in self._numbers)

    def __getitem__(self, place: Any) -> Any:
        found = self._numbers[place]
        return [*LongColumn(found)] if isinstance(place, slice) else found if math.isfinite(found) else None

    def index(self, value: float, start: int, stop: int) -> int:
        return self._numbers.index(value, start, stop)


class Table:
    """Steps, rising, and the numbers of their lines by key. Of two lines for one step, the later one counts.

    Keeps only these values of a line, as machine numbers: a million whole lines take 1.5 GB.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        single = SINGLE if path.is_file() and path.stat().st_size > MANY_BYTES else ()
        self._steps, self._columns = array("q"), {key: array("f" if key in single else "d") for key in keys}

    def clear(self) -> None:
        del self._steps[:]
        for column in self._columns.values():
            del column[:]

    def add(self, row: Mapping[str, object]) -> None:
        """A line without a step says nothing."""
        steps = self._steps
        if (step := _step(row)) is None:
            return
        place = len(steps) if not steps or step > steps[-1] else bisect_left(steps, step)
        if place == len(steps) or steps[place] != step:
            steps.insert(place, step)
            for column in self._columns.values():
                column.insert(place, math.nan)
        for key, column in self._columns.items():
            number = _number(row.get(key))
            column[place] = math.nan if number is None else number

    def columns(self) -> tuple[Sequence[int], dict[str, Column]]:
        """Of a long file the numbers themselves, which the next line changes; else copies."""
        if len(self._steps) > MANY_LINES:
            return self._steps, {key: cast(Column, LongColumn(each)) for key, each in self._columns.items()}
        return tuple(self._steps), {key: tuple(LongColumn(each)) for key, each in self._columns.items()}


def _step(row: Mapping[str, object]) -> int | None:
    step = row.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _numbers(values: Iterable[object]) -> Column:
    return tuple(map(_number, values))


def _median(column: Column) -> float | None:
    """Zeros do not count: they mean that nothing was measured."""
    values = array("d", filter(None, column))
    return middle(values) if len(values) > MANY_LINES else statistics.median(values) if values else None


def middle(values: Sequence[float]) -> float:
    """The median without a sorted copy of all: only what lies around the middle of a sample is sorted."""
    sample = sorted(values[:: max(1, len(values) // 1000)])
    low, high = sample[len(sample) * 45 // 100], sample[len(sample) * 55 // 100]
    around = sorted(value for value in values if low <= value <= high)
    place = len(values) // 2 - sum(value < low for value in values)
    least = 1 - len(values) % 2
    if not least <= place < len(around):
        return statistics.median(values)  # a sample that misleads
    return (around[place] + around[place - least]) / 2


def _points(steps: Sequence[int], column: Column) -> tuple[Point, ...]:
    """Of a long column only so many, evenly spaced, the first and the last among them."""
    every = -(-len(steps) // MOST_POINTS) if len(steps) > MANY_LINES else 1
    kept = (*range(0, len(steps), every), len(steps) - 1) if every > 1 else range(len(steps))
    pairs = ((steps[place], column[place]) for place in kept)
    return tuple(Point(step, value) for step, value in dict(pairs).items() if value is not None)

"""Sends what a mirror has and a service does not have yet, whole lines alone, and remembers how far it came.

It reads the mirror on this computer: neither the training nor the process that follows it waits for a service.

    feed(mirror, service, Progress.of(mirror, "wandb"))     # 120, the steps it sent
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.core.typed_json import WrongJson, decode, parse
from orchestrator.remote.whole_files import landing
from orchestrator.track.services import Service
from trainer.run_files import EVENT_VALIDATED, EVENTS, METRICS

SENT = ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_gib", "tokens")
VALIDATED = ("val_loss", "accuracy")
LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Progress:
    """Bytes of each file that a service has."""

    metrics: int = 0
    events: int = 0

    @staticmethod
    def of(mirror: Path, service: str) -> Progress:
        """From the file in the mirror; the beginning where it does not say."""
        try:
            return decode(Progress, parse((mirror / f"track-{service}.json").read_bytes()))
        except (OSError, WrongJson):
            return Progress()

    def keep(self, mirror: Path, service: str) -> None:
        """Writes the file."""
        with landing(mirror / f"track-{service}.json") as file:
            file.write(json.dumps(asdict(self)).encode())


def feed(mirror: Path, service: Service, progress: Progress) -> tuple[Progress, int]:
    """How far the service is now, and the number of lines that it was sent."""
    sent = 0
    for end, record in _lines(mirror / METRICS, progress.metrics):
        sent += _log(service, record, SENT)
        progress = replace(progress, metrics=end)
    for end, record in _lines(mirror / EVENTS, progress.events):
        if record.get("event") == EVENT_VALIDATED:
            sent += _log(service, record, VALIDATED)
        progress = replace(progress, events=end)
    return progress, sent


def _log(service: Service, record: Mapping[str, object], keys: tuple[str, ...]) -> bool:
    step, time = record.get("step"), _number(record.get("time"))
    values = {key: value for key in keys if (value := _number(record.get(key))) is not None}
    if type(step) is not int or not values:
        return False
    service.log(step, values, time or 0.0)
    return True


def _number(value: object) -> float | None:
    """A finite number, else None: a machine may write anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def _lines(path: Path, start: int) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Whole lines from that byte on, each with the byte after it; anything but an object is empty."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
            start += len(line)
            try:
                record = parse(line)
            except WrongJson:
                record = None
            yield start, record if isinstance(record, dict) else {}

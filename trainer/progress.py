"""JSON lines on stdout, and how far a long program is: the one meter of all the trainer's programs.

Standard library only. It must not decide anything: `gptctl` shows the lines as they arrive.

Example::

    progress = ByteProgress(total_bytes=5_000_000)
    progress.report(1_000_000)      # at most once a second: {"event": "progress", "done": 1000000, "total": ...}
    print_event("prepared", tokens=5_000_000)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

BYTES_EVERY_S = 1.0
COUNT_EVERY_S = 2.0


def print_line(**values: object) -> None:
    """One line of JSON on stdout, flushed."""
    print(json.dumps(values), flush=True)


def print_event(event: str, **values: object) -> None:
    """One line of JSON with an "event" first."""
    print_line(event=event, **values)


class Timer:
    """Says when the next report is due: `every_s` seconds after the one before, the first after the start."""

    def __init__(self, every_s: float) -> None:
        self.every_s, self.reported_at = every_s, time.monotonic()

    def is_due(self, *, at_once: bool = False) -> bool:
        """Whether to report now; True counts as a report."""
        now = time.monotonic()
        due = at_once or now - self.reported_at >= self.every_s
        if due:
            self.reported_at = now
        return due


def count_progress(what: str, unit: str) -> Callable[[int, int], None]:
    """A function (done, of) that prints {"progress": what, "done", "of", "unit"} every two seconds at most."""
    timer = Timer(COUNT_EVERY_S)

    def report(done: int, of: int) -> None:
        if timer.is_due():
            print_line(progress=what, done=done, of=of, unit=unit)

    return report


class ByteProgress:
    """Progress by bytes, with the rate and the time left; by documents where their number is limited."""

    def __init__(self, total_bytes: int, documents: int | None = None) -> None:
        self.total_bytes, self.documents = total_bytes, documents
        self.started, self.timer = time.monotonic(), Timer(BYTES_EVERY_S)
        self.first: tuple[int, int, int] | None = None
        """Bytes, documents and tokens at the first call: what an earlier process did must not count in the rate."""

    def report(self, done_bytes: int, documents: int = 0, tokens: int = 0) -> None:
        """Prints a line at most once a second. Rates per second, eta_s in seconds or None."""
        first = self.first = self.first or (done_bytes, documents, tokens)
        if not self.timer.is_due():
            return
        passed_s = max(time.monotonic() - self.started, 1e-9)
        rate = (done_bytes - first[0]) / passed_s
        eta_s = (self.total_bytes - done_bytes) / rate if rate > 0 else None
        if self.documents is not None:
            eta_s = (self.documents - documents) * passed_s / max(documents - first[1], 1)
        print_event(
            "progress",
            done=done_bytes,
            total=self.total_bytes,
            unit="bytes",
            rate=rate,
            eta_s=eta_s,
            documents=documents,
            tokens=tokens,
            tokens_per_second=(tokens - first[2]) / passed_s,
        )

    def report_file(self, before_bytes: int) -> Callable[[int], None]:
        """A function (bytes done of one file) that reports with the bytes of the files before it added."""
        return lambda done_bytes: self.report(before_bytes + done_bytes)

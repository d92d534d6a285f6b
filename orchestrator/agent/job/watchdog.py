"""Whether a training still makes steps. Looks at the growth of its files, never at GPU utilisation.

Only says what it sees; the supervisor acts. Times are seconds of a clock that stands still while the machine sleeps.

Example::

    watch = StepWatch(run_folder, {"factor": 20, "least_s": 120, "first_step_s": 900}, now_s=0.0)
    watch.verdict(now_s=130.0)      # None, or 'no step for 130 s ...'
"""

from __future__ import annotations

import math
import os
from collections import deque
from typing import cast

from trainer import run_files

from ..contract.requests import Watchdog
from ..system import files

DEFAULTS = {"factor": 20.0, "least_s": 120.0, "first_step_s": 900.0}
NONFINITE_LINES = 20
"""The trainer gives up after its own max_nonfinite_steps; this is for one that does not."""


class StepWatch:
    """Remembers when the metrics and events last grew and how long lines usually take."""

    def __init__(self, run_folder: str, settings: Watchdog, now_s: float) -> None:
        self.metrics = os.path.join(run_folder, run_files.METRICS)
        self.events = os.path.join(run_folder, run_files.EVENTS)
        self.settings = {**DEFAULTS, **{key: float(cast("float", value)) for key, value in settings.items()}}
        self.sizes = self._sizes()
        self.grew_at_s = self.line_at_s = now_s
        self.intervals_s: deque[float] = deque(maxlen=50)

    def _sizes(self) -> tuple[int, int]:
        return files.size_bytes(self.metrics), files.size_bytes(self.events)

    def verdict(self, now_s: float) -> str | None:
        """Why the training must end, or None. Validations and checkpoints write events, so they count as life."""
        sizes = self._sizes()
        if sizes[0] != self.sizes[0]:
            if self.sizes[0]:
                self.intervals_s.append(now_s - self.line_at_s)
            self.line_at_s = now_s
        if sizes != self.sizes:
            grew_metrics = sizes[0] != self.sizes[0]
            self.sizes, self.grew_at_s = sizes, now_s
            return self._not_a_number() if grew_metrics else None
        silent_s = now_s - self.grew_at_s
        if silent_s <= self.limit_s():
            return None
        return "no step for %.0f s (limit %.0f s)" % (silent_s, self.limit_s())

    def limit_s(self) -> float:
        """first_step_s before the first line; then factor x the median time between lines, at least least_s."""
        if not self.sizes[0]:
            return self.settings["first_step_s"]
        usual = sorted(self.intervals_s)[len(self.intervals_s) // 2] if self.intervals_s else 0.0
        return max(self.settings["least_s"], self.settings["factor"] * usual)

    def _not_a_number(self) -> str | None:
        count = nonfinite_lines(self.metrics)
        return "the loss is not finite in the last %d lines" % count if count >= NONFINITE_LINES else None


def nonfinite_lines(metrics: str) -> int:
    """How many of the newest lines of metrics, in a row, have a loss that is not a finite number."""
    count = 0
    for line in files.last_json_lines(metrics):
        loss = line.get("loss")
        if isinstance(loss, (int, float)) and math.isfinite(loss):
            break
        count += 1
    return count

"""Waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 4
"""By how much busier than usual a machine may be: what keeps a promise in seconds may take so many times as long here.
How long it takes is a figure, and tests/bench prints it."""
DEADLINE_S = 240.0
"""Ends a wait that hangs, and says nothing of speed: the machine that runs the tests may be busy."""
REST = 4
"""A wait rests so many times as long as its look took, at most RESTS_AT_MOST_S: a look may start a whole process, and
one that is repeated without a rest computes as much as what it waits for."""
RESTS_AT_MOST_S = 0.5


def until(what: Callable[[], Any], deadline_s: float = DEADLINE_S, interval_s: float = 0.02) -> Any:
    """The first true value of `what`, or an assertion with where it is written. What vanishes while it is looked at, a
    file that is moved or a process that ends, is not there yet."""
    ends = time.monotonic() + deadline_s
    while True:
        began = time.monotonic()
        try:
            found = what()
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            found = None
        if found:
            return found
        assert time.monotonic() < ends, f"not within {deadline_s:g} s: {getattr(what, '__code__', what)}"
        looked_s = time.monotonic() - began
        time.sleep(max(interval_s, min(REST * looked_s, RESTS_AT_MOST_S)))

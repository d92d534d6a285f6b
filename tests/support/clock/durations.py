"""A plugin of pytest that writes tests/durations.json after a run: `pytest -p tests.support.clock.durations`."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.support.clock.order import DURATIONS

LEAST_S = 1.0
"""Shorter ones do not decide when a run ends."""

_seconds: Counter[str] = Counter()
_nightly: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Set-up and clearing away count: a worker is busy with them, too."""
    _seconds[report.nodeid] += report.duration
    if "nightly" in report.keywords:
        _nightly.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Once, in the process that hears of all workers."""
    if not hasattr(session.config, "workerinput"):
        others = (*_nightly, "tests/architecture/")  # `make check` runs those
        gate = round(sum(seconds for name, seconds in _seconds.items() if not name.startswith(others)))
        long = {name: round(seconds) for name, seconds in sorted(_seconds.items()) if seconds >= LEAST_S}
        DURATIONS.write_text(json.dumps({"gate_s": gate, "tests": long}, indent=0) + "\n")

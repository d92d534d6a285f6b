"""Whether a watcher runs: the mark that it leaves at every pass, and how old it is. Reads one small file.

Example: `watcher_alive(home, now)` -> 42.0, seconds since its last good pass, or None if no mark says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.config.settings import load_settings
from orchestrator.core.errors import UserError

MARK_FILE = "watcher.json"
PERIOD_S = 300.0
"""How often the timer calls the watcher."""
MISSED_S = 3 * PERIOD_S
"""A watcher that was silent this long is taken for dead."""


@dataclass(frozen=True)
class Mark:
    """What the last pass left: when it was (UTC epoch seconds), and whether every cloud answered."""

    time: float
    ok: bool
    providers: tuple[str, ...] = ()
    result: str = ""
    stuck: tuple[str, ...] = ()
    """Instances that would not end."""


def mark_path(home: Path) -> Path:
    """Where the mark lies: watcher.mark_file of config.toml, else GPTCTL_HOME/watcher.json."""
    named = load_settings(home).watcher.mark_file
    return Path(named).expanduser() if named else home / MARK_FILE


def last_mark(home: Path) -> Mark | None:
    """The mark of the last pass, or None when there is none that can be read."""
    try:
        found: Any = json.loads(mark_path(home).read_text(encoding="utf-8"))
        providers = tuple(str(name) for name in found["providers"])
        stuck = tuple(str(name) for name in found.get("stuck", ()))
        return Mark(float(found["time"]), bool(found["ok"]), providers, str(found.get("result", "")), stuck)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def watcher_alive(home: Path, now: float, provider: str | None = None) -> float | None:
    """Seconds since the watcher's last pass if it was a good one, no longer than MISSED_S ago, and asked `provider`.

    None otherwise. A mark from the future proves nothing: a clock is wrong.
    """
    mark = last_mark(home)
    if mark is None or not mark.ok or (provider is not None and provider not in mark.providers):
        return None
    age_s = now - mark.time
    return max(0.0, age_s) if -60.0 <= age_s <= MISSED_S else None

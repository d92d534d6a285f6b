"""What `gptctl check` finds, as a value: what it checked, the level, the evidence, and the fix.

Example: `Finding("rsync", WARN, "not found", "apt install rsync")`
"""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line."""

    what: str
    level: str
    found: str
    fix: str = ""

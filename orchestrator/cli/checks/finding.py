"""What `gptctl check` finds, as a value: what was looked at, how it is, the evidence, and the fix. Looks at nothing.

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

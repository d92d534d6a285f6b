"""Lambda's rate limits, enforced on request: 1 request per second, 1 launch per 12 s, over all clients of the account.

Example: `RateLimit(strict=True).check("list")` twice in a second raises the second time
"""

from __future__ import annotations

import threading
import time

from orchestrator.rehearsal.refusal import Refusal

REQUEST_EVERY_S = 1.0
LAUNCH_EVERY_S = 12.0
TOLERANCE_S = 0.05
"""A client that waits exactly a second must not be refused for the time its packets took."""


class RateLimit:
    """When the last request and the last launch were."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}

    def check(self, operation: str) -> None:
        """Raises Refusal 429 for a request that comes too early."""
        if not self._strict:
            return
        with self._lock:
            now = time.monotonic()
            for what, every_s in (("any", REQUEST_EVERY_S), ("launch", LAUNCH_EVERY_S)):
                if what in ("any", operation):
                    if now - self._last.get(what, -1e9) < every_s - TOLERANCE_S:
                        raise Refusal(429, "global/too-many-requests", "Too many requests.")
                    self._last[what] = now

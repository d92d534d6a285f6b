"""EC2's words for what became of an instance, in ours: preempted, ended from the console, powered off, or only stopped.

Example: `status_of(InstanceRow("i-0a", state="terminated", reason_code="Server.SpotInstanceTermination"))`
-> ("preempted", "AWS took it back for the spot market")
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from orchestrator.providers.ec2.api import Refused
from orchestrator.providers.ec2.rows import InstanceRow

STATES: Final = {"pending": "booting", "running": "active", "shutting-down": "terminating", "stopping": "stopped"}
"""States with another name here."""
PREEMPTED: Final = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")
REASONS: Final = {
    **dict.fromkeys(PREEMPTED, "AWS took it back for the spot market"),
    "Client.UserInitiatedShutdown": "it was ended from the console or by the API",
    "Client.InstanceInitiatedShutdown": "it was powered off from inside",
    "Client.InstanceTerminated": "it was powered off from inside",
    "Server.InsufficientInstanceCapacity": "AWS had no capacity for it after all",
}
"""Of a StateReason's code; of others, its message."""
MOMENT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
ADDRESS_WITHIN_S = 120.0
"""A machine that runs for longer without a public address gets none."""


def status_of(row: InstanceRow) -> tuple[str, str]:
    """(our word for an instance's state, what EC2 says of how it came to it)."""
    if row.state == "running" and not row.ip:
        up_s = time.time() - (row.launched_at or 0.0)
        return ("unhealthy", "it has no public address") if up_s > ADDRESS_WITHIN_S else ("active", "")
    if row.state in ("pending", "running", ""):
        return STATES.get(row.state, "unknown"), ""
    words = (REASONS.get(row.reason_code, row.reason), row.transition)
    preempted = row.state == "terminated" and row.reason_code in PREEMPTED
    return "preempted" if preempted else STATES.get(row.state, row.state), ": ".join(filter(None, words))


def moment_in(why: str) -> float | None:
    """The moment that a StateTransitionReason names, `User initiated (2026-11-20 10:00:00 GMT)`: UTC epoch seconds."""
    named = MOMENT.search(why)
    return datetime.fromisoformat(named[1]).replace(tzinfo=UTC).timestamp() if named else None


@contextmanager
def missing_is_fine() -> Iterator[None]:
    """An instance that is not listed yet, or not any more, is not a failure."""
    try:
        yield
    except Refused as error:
        if not error.code.startswith("InvalidInstanceID"):
            raise

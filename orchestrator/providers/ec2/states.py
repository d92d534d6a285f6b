"""EC2's words for what became of an instance, in ours: preempted, ended from the console, powered off, or only stopped.

Example: `status_of({"State": {"Name": "terminated"}, "StateReason": {"Code": "Server.SpotInstanceTermination"}})`
-> ("preempted", "AWS took it back for the spot market")
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.providers.ec2.api import Refused

STATES: Final = {"pending": "booting", "running": "active", "shutting-down": "terminating", "stopping": "stopped"}
"""Those that are not called the same here."""
PREEMPTED: Final = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")
REASONS: Final = {
    **dict.fromkeys(PREEMPTED, "AWS took it back for the spot market"),
    "Client.UserInitiatedShutdown": "somebody ended it from the console or by the API",
    "Client.InstanceInitiatedShutdown": "it was powered off from inside",
    "Client.InstanceTerminated": "it was powered off from inside",
    "Server.InsufficientInstanceCapacity": "AWS had no capacity for it after all",
}
"""Of a StateReason's code; of others, its message."""
MOMENT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")
ADDRESS_WITHIN_S = 120.0
"""A machine that runs for longer without a public address gets none."""


def status_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(our word for an instance's state, what EC2 says of how it came to it)."""
    state, reason = str(row["State"]["Name"]), row.get("StateReason") or {}
    code = str(reason.get("Code", ""))
    if state == "running" and not row.get("PublicIpAddress"):
        up_s = time.time() - row["LaunchTime"].timestamp()
        return ("unhealthy", "it has no public address") if up_s > ADDRESS_WITHIN_S else ("active", "")
    if state in ("pending", "running"):
        return STATES[state], ""
    told = (REASONS.get(code, str(reason.get("Message", ""))), str(row.get("StateTransitionReason") or ""))
    preempted = state == "terminated" and code in PREEMPTED
    return "preempted" if preempted else STATES.get(state, state), ": ".join(filter(None, told))


def moment_in(why: str) -> float | None:
    """The moment that a StateTransitionReason names, `User initiated (2026-11-20 10:00:00 GMT)`: UTC epoch seconds."""
    named = MOMENT.search(why)
    return datetime.fromisoformat(named[1]).replace(tzinfo=UTC).timestamp() if named else None


@contextmanager
def missing_is_fine() -> Iterator[None]:
    """An instance that is not there (yet, or any more) is no failure."""
    try:
        yield
    except Refused as error:
        if not error.code.startswith("InvalidInstanceID"):
            raise

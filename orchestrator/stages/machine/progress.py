"""A transfer's counts as progress events of its run; telling them also renews the machine's lease.

Example: `transfer.push_file(context.shell, source, destination, progress(context, "data.npy"))`
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.remote.transfer import transfer
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline


def progress(context: RunContext, what: str) -> Callable[[transfer.Transfer], None]:
    """A listener that turns a transfer's counts into progress events."""

    def tell(moved: transfer.Transfer) -> None:
        context.emit(
            "progress",
            what=what,
            done=moved.bytes_done,
            total=moved.bytes_total,
            unit="bytes",
            rate=moved.rate_bytes_per_s,
            eta_s=moved.eta_s,
        )
        deadline.extend(context)

    return tell

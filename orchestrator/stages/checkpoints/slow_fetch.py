"""While checkpoints come here from a rented machine: says once what the rest takes and costs, where that is more than
`fetch_minutes` of the host. It must not end a fetch.

Example::

    watch = Watch(context, left_bytes=3_900_000_000)
    pull_files(..., watch.beside(progress(context, "step-000600")))
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.core.formats import dollars, duration, size
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.stages.context import RunContext

TELLING_S = 20.0
"""The first seconds say more about round trips than about the line."""


class Watch:
    """Of one fetch. `left_bytes`: of the checkpoints that are not here yet."""

    def __init__(self, context: RunContext, left_bytes: int) -> None:
        self.context, self.left_bytes = context, left_bytes
        self.began = context.now()
        self.is_silent = not context.provider.paid

    def beside(self, listener: Callable[[Transfer], None]) -> Callable[[Transfer], None]:
        """The listener of one checkpoint's transfer."""

        def listen(moved: Transfer) -> None:
            listener(moved)
            self._look(moved)

        return listen

    def done(self, size_bytes: int) -> None:
        """One checkpoint is here."""
        self.left_bytes -= size_bytes

    def _look(self, moved: Transfer) -> None:
        rate, rest = moved.rate_bytes_per_s, self.left_bytes - moved.bytes_done
        if self.is_silent or rate <= 0 or self.context.now() - self.began < TELLING_S:
            return
        if rest / rate > self.context.host.fetch_minutes * 60:
            self.is_silent = True
            self.context.emit("warning", words(self.context, rest, rate))


def words(context: RunContext, rest_bytes: float, rate: float) -> str:
    """`bringing the other 3.90 GB here at 0.4 MB/s takes 2h 42m and costs $43.12; ...`."""
    lasts_s = rest_bytes / rate
    usd = dollars(lasts_s / 3600 * context.rental.price_per_hour_usd)
    what = f"the other {size(rest_bytes)} here at {rate / 1e6:.3g} MB/s"
    said = f"bringing {what} takes {duration(lasts_s)} and costs {usd}"
    if context.host.checkpoint_store is not None:
        return said
    return f"{said}; with checkpoint_store in [hosts.{context.host.name}] the next run stores while it trains"

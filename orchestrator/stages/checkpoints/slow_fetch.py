"""While checkpoints come here from a rented machine: says once what the rest takes and costs, where that is more than
`fetch_minutes` of the host. It ends a fetch only where a store can take over (late_store.py).

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


class TooSlow(Exception):
    """The rest takes longer than `fetch_minutes`. What arrived stays; the text says what the rest would cost."""


class Watch:
    """Of one fetch. `left_bytes`: of the checkpoints that are not here yet. may_stop: it raises TooSlow where it would
    else only say so."""

    def __init__(self, context: RunContext, left_bytes: int, *, may_stop: bool = False) -> None:
        self.context, self.left_bytes, self.may_stop = context, left_bytes, may_stop
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
        if rest / rate <= self.context.host.fetch_minutes * 60:
            return
        self.is_silent = True
        if self.may_stop:
            raise TooSlow(words(self.context, rest, rate))
        self.context.emit("warning", f"{words(self.context, rest, rate)}{_advice(self.context)}")


def words(context: RunContext, rest_bytes: float, rate: float) -> str:
    """`bringing the other 3.90 GB here at 0.4 MB/s takes 2h 42m and costs $43.12`."""
    lasts_s = rest_bytes / rate
    usd = dollars(lasts_s / 3600 * context.rental.price_per_hour_usd)
    what = f"the other {size(rest_bytes)} here at {rate / 1e6:.3g} MB/s"
    return f"bringing {what} takes {duration(lasts_s)} and costs {usd}"


def _advice(context: RunContext) -> str:
    """What would be cheaper; nothing where a store was tried already."""
    if context.host.checkpoint_store is not None or context.host.fetch_store is not None:
        return ""
    return (
        f"; cheaper: Ctrl-C, then gptctl resume {context.run_id} --store s3://BUCKET/PREFIX: the machine stores them "
        f"there itself and is given back (fetch_store in [hosts.{context.host.name}] does so by itself)"
    )

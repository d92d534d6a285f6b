"""What it costs to bring the checkpoints here from the region of a machine, while it is billed. Pure arithmetic.

Example: `far_words(host, fetch, Hours.of(train=2.5, fetch=10.0), price)` warns of a machine too far away
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.formats import dollars, hours, size
from orchestrator.core.machines import assumed
from orchestrator.core.planning.plan import Hours, PlanFetch

LEAST_H = 0.1
"""A fetch that is over sooner is not worth a warning, however short the training is."""
Rates = Mapping[tuple[str, str], float]
"""MB/s of the newest fetch from a provider's region."""
NO_RATES: Rates = MappingProxyType({})


class Price(Protocol):
    """Of a machine."""

    @property
    def per_hour_usd(self) -> float | None: ...


def fetch_of(host: HostSpec | None, region: str, size_bytes: int, rates: Rates) -> PlanFetch | None:
    """What comes here, and how fast; None where the machine is not billed meanwhile, or stores by itself."""
    if host is None or not host.paid or host.checkpoint_store is not None:
        return None
    measured = rates.get((host.provider, region))
    rate = assumed().fetch_mb_per_s.of(host.provider, True) if measured is None else measured
    return PlanFetch(size_bytes, rate, measured is not None, region)


def stored_instead(host: HostSpec | None, fetch: PlanFetch | None) -> str | None:
    """The `fetch_store` that takes them, where bringing them here takes longer than `fetch_minutes`."""
    if host is None or fetch is None or fetch.size_bytes <= fetch.mb_per_s * 1e6 * host.fetch_minutes * 60:
        return None
    return host.fetch_store


def billed_mb_per_s(host: HostSpec | None, fetch: PlanFetch | None) -> float | None:
    """MB/s at which the checkpoints leave the machine while it is billed; None: as assumed."""
    if stored_instead(host, fetch) is not None:
        return assumed().store_mb_per_s
    return fetch.mb_per_s if fetch else None


def words(fetch: PlanFetch, lasts_h: float, price_per_hour_usd: float | None) -> str:
    """`12.4 GB from us-west-1 at 6 MB/s (assumed): 34m, $9.02`."""
    known = "as measured from there" if fetch.is_measured else "assumed"
    where = f" from {fetch.region}" if fetch.region else ""
    usd = "" if price_per_hour_usd is None else f", {dollars(lasts_h * price_per_hour_usd)}"
    return f"{size(fetch.size_bytes)}{where} at {fetch.mb_per_s:.3g} MB/s ({known}): {hours(lasts_h)}{usd}"


def far_words(host: HostSpec | None, fetch: PlanFetch | None, planned: Hours, price: Price) -> str:
    """A warning where the fetch takes longer than the training, or a store takes over (stored_instead); else empty."""
    store, price_per_hour_usd = stored_instead(host, fetch), price.per_hour_usd
    if fetch is not None and store is not None:
        here = words(fetch, fetch.size_bytes / fetch.mb_per_s / 3.6e9, price_per_hour_usd)
        return f"fetching is slow: {here}; the machine stores them in {store} instead"
    if fetch is None or planned.fetch < LEAST_H or planned.fetch <= planned.train:
        return ""
    return (
        f"fetching takes longer than the training: {words(fetch, planned.fetch, price_per_hour_usd)}; "
        "set checkpoint_store or fetch_store, lower train.keep_last, or rent nearer: regions of the host"
    )

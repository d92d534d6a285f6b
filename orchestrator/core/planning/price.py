"""The price of an hour, and who says so: the cloud's offer, the inventory, or the newest list that came with gptctl.

Example: `quote(host, machine_type("8xA100-40GB"), None)`     # Quote(15.92, "lambda, bundled 2026-11-01", ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.machines import MachineType, bundled_offers
from orchestrator.core.ports import Offer


@dataclass(frozen=True)
class Quote:
    """A price with its source. `paid`: bought by the hour; `dated_at`: UTC epoch seconds of a bundled price."""

    per_hour_usd: float | None
    source: str
    paid: bool
    dated_at: float | None = None


def quote(host: HostSpec | None, machine: MachineType, offer: Offer | None) -> Quote:
    """The price that counts for this host: the offer's, else the inventory's, else the newest bundled one."""
    if host is not None and not host.paid:
        if host.price_per_hour_usd is None:
            return Quote(0.0, "your own machine, no price set", paid=False)
        return Quote(host.price_per_hour_usd, "inventory", paid=False)
    if offer is None:
        known = [o for o in bundled_offers(machine.name) if host is None or o.provider == host.provider]
        offer = min(known, key=lambda o: o.price_per_hour_usd, default=None)
    if offer is None:
        return Quote(None, "no price known", paid=host is not None)
    dated_at = None
    if offer.source.startswith("bundled "):
        day = datetime.fromisoformat(offer.source.removeprefix("bundled "))
        dated_at = day.replace(tzinfo=UTC).timestamp()
    return Quote(offer.price_per_hour_usd, f"{offer.provider}, {offer.source}", paid=True, dated_at=dated_at)

"""What a provider will charge for one machine, from what was seen of it. Pure.

Billing runs from the moment the machine was healthy to its end, per started unit: a minute, or a second of which the
first sixty are billed in any case. Either end is known exactly (from
an audit log) or lies between two looks; then the bill is shown as its upper bound with what it may be less.

Example::

    bill(Span(active=(10.0, 12.0), ended=(3600.0, 3603.0)), price_per_hour_usd=15.92).cost_usd
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MINUTE_S = 60.0


@dataclass(frozen=True)
class Span:
    """When a machine began and ceased to cost, each as (earliest, latest) in UTC epoch seconds."""

    active: tuple[float, float]
    ended: tuple[float, float]


@dataclass(frozen=True)
class Bill:
    """Upper bound in USD before tax, and how much less it may be (0: both ends are exact enough)."""

    cost_usd: float
    less_usd: float
    minutes: float
    span: Span

    def to_json(self) -> dict[str, Any]:
        """For the ledger and cost.json."""
        return asdict(self)


def bill(span: Span, price_per_hour_usd: float, unit_s: float = MINUTE_S) -> Bill:
    """The bill at the launch-time price."""
    most = _billed_s(span.ended[1] - span.active[0], unit_s)
    least = _billed_s(span.ended[0] - span.active[1], unit_s)
    price_per_s_usd = price_per_hour_usd / 3600
    return Bill(most * price_per_s_usd, (most - least) * price_per_s_usd, most / MINUTE_S, span)


def _billed_s(seconds: float, unit_s: float) -> float:
    """A machine that ran at all is billed for a minute at least."""
    units = max(0, math.ceil(seconds / unit_s - 1e-9))
    return max(units * unit_s, MINUTE_S) if units else 0.0


def observed(seen: Mapping[str, Any], audited_end: float | None = None) -> Span | None:
    """The span from what acquire and release noted about a rental; None for a machine that never came up.

    seen: `booting_at` (last look before it was active), `active_at`, `alive_at` (last seen alive), `gone_at`;
    `unhealthy_at` of one that came up unhealthy: whether those are billed, provider and users disagree.
    """
    active_at = seen.get("active_at")
    if active_at is None:
        return _perhaps_billed(seen)
    active = (float(seen.get("booting_at") or active_at), float(active_at))
    if audited_end is not None:
        return Span(active, (audited_end, audited_end))
    gone_at = float(seen.get("gone_at") or seen.get("alive_at") or active_at)
    return Span(active, (min(float(seen.get("alive_at") or active_at), gone_at), gone_at))


def _perhaps_billed(seen: Mapping[str, Any]) -> Span | None:
    """From nothing to all the time that it was unhealthy."""
    if seen.get("unhealthy_at") is None:
        return None
    up_at = float(seen["unhealthy_at"])
    gone_at = float(seen.get("gone_at") or seen.get("alive_at") or up_at)
    return Span((float(seen.get("booting_at") or up_at), up_at), (up_at, gone_at))

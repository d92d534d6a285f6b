"""What a provider will charge for one machine, from what was seen of it. Pure.

Billing runs from the moment the machine was healthy to its end, per started unit: a minute, or a second of which the
first sixty are billed in any case. Either end is known exactly (from an audit log) or is between two list calls; then
the bill is its upper bound, with the amount that it may be less.

Example::

    bill(Span(active=(10.0, 12.0), ended=(3600.0, 3603.0)), price_per_hour_usd=15.92).cost.high
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from orchestrator.core.estimate import Estimate
from orchestrator.core.typed_json import flat

MINUTE_S = 60.0
CLOCKS_DIFFER_S = 120.0
"""By how much an audit log's time may contradict what was seen here. A machine that is ending is seen for a while."""


@dataclass(frozen=True)
class MachineLife:
    """When the provider's lists showed a machine in which state, in UTC epoch seconds; None: never."""

    booting_at: float | None = None
    """Last seen booting; before the first look: when it was ordered."""
    unhealthy_at: float | None = None
    """First seen unhealthy. Whether such machines are billed, provider and users disagree."""
    active_at: float | None = None
    """First seen active."""
    alive_at: float | None = None
    """Last seen alive."""
    gone_at: float | None = None
    """First seen gone."""


@dataclass(frozen=True)
class Span:
    """When a machine began and ceased to cost, each as (earliest, latest) in UTC epoch seconds."""

    active: tuple[float, float]
    ended: tuple[float, float]


@dataclass(frozen=True)
class Bill:
    """An upper bound, and how much less it may be (0: both ends are exact enough)."""

    cost: Estimate
    minutes: float
    span: Span


@dataclass(frozen=True)
class SettledBill:
    """The bill of all machines of a rental. `audited`: its end comes from the provider's audit log."""

    cost: Estimate = field(metadata=flat)
    minutes: float = 0.0
    audited: bool = False


def bill(span: Span, price_per_hour_usd: float, unit_s: float = MINUTE_S) -> Bill:
    """The bill at the launch-time price."""
    most = _billed_s(span.ended[1] - span.active[0], unit_s)
    least = _billed_s(span.ended[0] - span.active[1], unit_s)
    price_per_s_usd = price_per_hour_usd / 3600
    return Bill(Estimate(most * price_per_s_usd, (most - least) * price_per_s_usd), most / MINUTE_S, span)


def settled(
    life: MachineLife,
    others: Iterable[MachineLife],
    price_per_hour_usd: float,
    unit_s: float = MINUTE_S,
    audited_end: float | None = None,
) -> SettledBill:
    """The bill of a rental whose machines are gone: the one that it held last, and the others that it ever had.
    audited_end: of the held one, from its provider's audit log, in UTC epoch seconds."""
    held = observed(life, audited_end)
    bills = [bill(span, price_per_hour_usd, unit_s) for span in (*map(observed, others), held) if span is not None]
    total = sum((each.cost for each in bills), Estimate(0.0))
    audited = held is not None and held.ended == (audited_end, audited_end)
    return SettledBill(total, sum(each.minutes for each in bills), audited)


def so_far(lives: Iterable[MachineLife], now: float, price_per_hour_usd: float) -> float:
    """USD that the machines of a rental may have cost by `now` (UTC epoch seconds): to their end or to now, each with
    the minute that it has begun. Of a provider that bills by the second it may be that much less."""
    spans = (observed(replace(life, gone_at=min(now, life.gone_at or now))) for life in lives)
    return sum(bill(span, price_per_hour_usd).cost.cost_usd for span in spans if span is not None)


def rental_cost(
    spent_usd: float, settled: SettledBill | None, life: MachineLife, price_per_hour_usd: float, seen_at: float | None
) -> Estimate:
    """What a run on a rental has cost so far: its share of the bill where there is one, else the time in its stages,
    which may be less by what is not known of the machine's life. seen_at: UTC epoch seconds when the machine itself was
    last heard of."""
    if settled is not None and settled.cost.cost_usd:
        return settled.cost.times(spent_usd / settled.cost.cost_usd)
    seen = max((at for at in (life.alive_at, life.active_at, seen_at) if at is not None), default=None)
    span = observed(replace(life, alive_at=seen))
    if span is None:
        return Estimate(spent_usd)
    least_s = max(0.0, span.ended[0] - span.active[1])
    return Estimate(spent_usd, max(0.0, spent_usd - least_s / 3600 * price_per_hour_usd))


def _billed_s(seconds: float, unit_s: float) -> float:
    """A machine that ran at all is billed for a minute at least."""
    units = max(0, math.ceil(seconds / unit_s - 1e-9))
    return max(units * unit_s, MINUTE_S) if units else 0.0


def observed(life: MachineLife, audited_end: float | None = None) -> Span | None:
    """The span of a machine's life; None for one that was never bought. audited_end: from an audit log.

    `booting_at` begins as the moment of the order: a machine that nobody looked at for a night may have been active
    ever since. An audited end before it was last seen alive, or after it was seen gone, is of another clock than
    ours: then what was seen here counts.
    """
    if life.active_at is None:
        return _perhaps_billed(life)
    active = (life.booting_at or life.active_at, life.active_at)
    gone_at = life.gone_at or life.alive_at or life.active_at
    alive_at = min(life.alive_at or life.active_at, gone_at)
    if audited_end is not None and alive_at - CLOCKS_DIFFER_S <= audited_end <= gone_at + CLOCKS_DIFFER_S:
        return Span(active, (audited_end, audited_end))
    return Span(active, (alive_at, gone_at))


def _perhaps_billed(life: MachineLife) -> Span | None:
    """From nothing to all the time that it was unhealthy, or that nobody saw what it was."""
    up_at = life.unhealthy_at
    if up_at is None:
        if life.booting_at is None:
            return None
        gone_at = life.gone_at or life.alive_at or life.booting_at
        return Span((life.booting_at, gone_at), (gone_at, gone_at))
    gone_at = life.gone_at or life.alive_at or up_at
    return Span((life.booting_at or up_at, up_at), (up_at, gone_at))

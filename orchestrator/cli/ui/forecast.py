"""What this month will have cost when the runs of now have ended, and when a ceiling would be reached. Pure.

Example: `forecast(totals, rows, now).month_usd`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.cli.machines.totals import Totals
from orchestrator.core.states import State


@dataclass(frozen=True)
class Forecast:
    """USD of the calendar month; `ceiling_at`: UTC epoch seconds, None where nothing bills or nothing limits."""

    month_usd: float
    ceiling_at: float | None
    unknown: int
    """Runs on machines that bill, of which nobody knows how long they take: the least is known, not the whole."""

    def to_json(self) -> dict[str, object]:
        """`forecast` of the page's state."""
        return asdict(self)


def forecast(totals: Totals, rows: Sequence[Mapping[str, Any]], now: float) -> Forecast:
    """rows: of `gptctl status --json`. A machine bills until its last run ends: the longest ETA of its runs."""
    paid = [row for row in rows if row["state"] != State.ENDED and row["price_per_hour_usd"]]
    left_usd: dict[str, float] = {}
    for row in paid:
        usd = (row["eta_s"] or 0.0) / 3600 * row["price_per_hour_usd"]
        left_usd[row["rental"]] = max(usd, left_usd.get(row["rental"], 0.0))
    ceiling, rate = totals.month_ceiling_usd, totals.billing_per_hour_usd
    reached = None
    if ceiling and rate:
        reached = now + max(0.0, ceiling - totals.month_usd) / rate * 3600
    return Forecast(totals.month_usd + sum(left_usd.values()), reached, sum(row["eta_s"] is None for row in paid))

"""The line of totals under `status` and `cost`: what bills now, what today and this month cost, and the ceiling.

Example: `print(totals_of(ledger).words)`    # billing now $15.92/h · today $3.10 · this month $41.20 of at most $200.00
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from orchestrator.core.config.gptctl_home import CONFIG_FILE
from orchestrator.core.formats import dollars
from orchestrator.core.money.calendar import day_start, month_start
from orchestrator.ledger.ledger import Ledger


@dataclass(frozen=True)
class Totals:
    """USD, and USD per hour of the machines that may be billing now; `month_ceiling_usd` None: there is none."""

    billing_per_hour_usd: float
    today_usd: float
    month_usd: float
    month_ceiling_usd: float | None

    def to_json(self) -> dict[str, float | None]:
        """The object under `totals`."""
        return asdict(self)

    @property
    def words(self) -> str:
        """One line; empty if you rent nothing."""
        if not (self.billing_per_hour_usd or self.month_usd or self.month_ceiling_usd):
            return ""
        ceiling = f" of at most {dollars(self.month_ceiling_usd)}" if self.month_ceiling_usd else ""
        return (
            f"billing now {dollars(self.billing_per_hour_usd)}/h · today {dollars(self.today_usd)} · "
            f"this month {dollars(self.month_usd)}{ceiling}"
        )


def totals_of(ledger: Ledger) -> Totals:
    """By the ledger alone, what nobody watched included."""
    now = time.time()
    today, month = (ledger.spend_since(start(now)) for start in (day_start, month_start))
    return Totals(ledger.billing_per_hour_usd(), today, month, _ceiling(ledger))


def _ceiling(ledger: Ledger) -> float | None:
    if not (ledger.home / CONFIG_FILE).is_file():
        return None
    # Only with a file: reading it loads pydantic.
    from orchestrator.core.config.settings import load_settings

    return load_settings(ledger.home).limits.max_usd_per_month

"""What a run has cost, with how much less it may be while its rental has no bill: for `status` and `cost`.

Example: `run_estimate(run, rental, spent(intervals)).low`
"""

from __future__ import annotations

from orchestrator.core.estimate import Estimate
from orchestrator.core.money.billing import rental_cost
from orchestrator.core.ports import UNPAID
from orchestrator.ledger.bills.spending import RunSpending
from orchestrator.ledger.records import Rental, RunRecord


def run_estimate(run: RunRecord | RunSpending, rental: Rental | None, spent_usd: float) -> Estimate:
    """spent_usd: of the time in the run's stages."""
    if rental is None or rental.provider in UNPAID:
        return Estimate(spent_usd)
    facts = rental.facts
    return rental_cost(spent_usd, facts.bill, facts.life, rental.price_per_hour_usd, run.seen_at)

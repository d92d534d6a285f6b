"""History, intent and money in SQLite, and the lock that keeps one driver per run.

It must not reach a machine or decide what to do: the stages look at the world and write here what they saw.

    from orchestrator.ledger import Ledger, RunLock, RunRecord
"""

from orchestrator.ledger.identity import new_rental_id, new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Attempt, Evaluation, Intent, RateRecord, Rental, RunRecord, StageInterval
from orchestrator.ledger.run_lock import Holder, RunLock, holder

__all__ = [
    "Attempt",
    "Evaluation",
    "Holder",
    "Intent",
    "Ledger",
    "RateRecord",
    "Rental",
    "RunLock",
    "RunRecord",
    "StageInterval",
    "holder",
    "new_rental_id",
    "new_run_id",
]

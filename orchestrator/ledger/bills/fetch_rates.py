"""How fast checkpoints came here from each region, by the rentals they came from.

Example: `fetch_rates(ledger.rentals())[("lambda", "asia-northeast-1")]` -> 0.4
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ledger.records import Rental


def fetch_rates(newest_first: Sequence[Rental]) -> dict[tuple[str, str], float]:
    """MB/s by provider and region: of each the newest."""
    found: dict[tuple[str, str], float] = {}
    for rental in newest_first:
        if rental.facts.fetch_mb_per_s:
            found.setdefault((rental.provider, rental.facts.region), rental.facts.fetch_mb_per_s)
    return found

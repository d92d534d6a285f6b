"""How much a loss varies from seed to seed: measured, or the published figure. Pure arithmetic.

Published: three seeds of the 163M baseline on the reference test slice gave 3.6915, 3.6735 and 3.6536 (standard
deviation of the three, 0.0155). Figures measured here are sample standard deviations (n - 1), pooled over recipes.

    pooled([[3.69, 3.67, 3.65], [3.5, 3.52]]).value
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

PUBLISHED = 0.0155


@dataclass(frozen=True)
class Deviation:
    """Standard deviation in nats per token; `runs` is how many runs it was measured on, 0 for the published one."""

    value: float = PUBLISHED
    source: str = "published"
    runs: int = 0

    def words(self) -> str:
        """Where the figure comes from, in words."""
        where = "published for 163M parameters on FineWeb, not measured on these recipes"
        if self.source == "own":
            where = f"measured on {self.runs} runs here"
        return f"the standard deviation between seeds is {self.value:.4f} ({where})"


def pooled(groups: Sequence[Sequence[float]]) -> Deviation:
    """Over groups of runs that differ by their seed alone; groups of one say nothing."""
    telling = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in telling)
    if not freedom:
        return Deviation()
    value = math.sqrt(sum((len(group) - 1) * statistics.variance(group) for group in telling) / freedom)
    return Deviation(value, "own", sum(map(len, telling))) if value > 0 else Deviation()

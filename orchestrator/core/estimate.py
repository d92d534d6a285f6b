"""The one shape of an amount of money that is not known exactly: a figure, how much less it may be, and how much more.

A bill is an upper bound: it may be less. A plan may be either. JSON has all three, `less_usd` and `more_usd` beside the
figure; people see a range, or one figure where its ends read nearly the same (`dollars_between` in formats.py).

Example: `sum([Estimate(1.33, less_usd=0.8), Estimate(0.5)], Estimate(0.0)).low` -> 1.03
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """USD before tax: between cost_usd - less_usd and cost_usd + more_usd. Both 0: exact."""

    cost_usd: float
    less_usd: float = 0.0
    more_usd: float = 0.0

    @property
    def low(self) -> float:
        """The least that it may be."""
        return self.cost_usd - self.less_usd

    @property
    def high(self) -> float:
        """The most that it may be."""
        return self.cost_usd + self.more_usd

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.cost_usd + other.cost_usd, self.less_usd + other.less_usd, self.more_usd + other.more_usd)

    def times(self, share: float) -> Estimate:
        """A share of it, such as a run's of its rental's."""
        return Estimate(self.cost_usd * share, self.less_usd * share, self.more_usd * share)

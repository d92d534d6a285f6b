"""How much a loss varies from seed to seed, and what a difference of two recipes is beside it. Pure arithmetic.

Published: three seeds of the 163M baseline on the reference test slice gave 3.6915, 3.6735 and 3.6536. Their standard
deviation is 0.0155 over the three (n), 0.0190 as a sample's (n - 1), which is what all figures here are.

    deviation = pooled([[3.69, 3.67, 3.65], [3.5, 3.52]])
    effect_of({42: 3.60, 7: 3.59}, {42: 3.69, 7: 3.67}, deviation).words()      # "-0.0850 (-0.1485 to -0.0215)"
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PUBLISHED = 0.0190
PUBLISHED_RUNS = 3
FEW = 4
"""Fewer degrees of freedom than this are too few seeds: the quantile is above 2.8 then, not 2."""
STUDENT_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t, from one degree of freedom on (any statistics table)."""


@dataclass(frozen=True)
class Deviation:
    """Standard deviation of one run's loss in nats per token; `runs` is how many runs it was measured on, 0 for the
    published one; `freedom`: its degrees of freedom."""

    value: float = PUBLISHED
    source: str = "published"
    runs: int = 0
    freedom: int = PUBLISHED_RUNS - 1

    def words(self) -> str:
        """Where the figure comes from, and what it means for one run and for a mean."""
        where = f"published: {PUBLISHED_RUNS} seeds of 163M parameters on FineWeb, not measured on these recipes"
        if self.source == "own":
            where = f"measured on {self.runs} runs here"
        few = "; too few seeds" if self.freedom < FEW else ""
        return (
            f"one run varies by {self.value:.4f} from seed to seed ({where}{few}), a mean of four by half of that; "
            f"two single runs differ for certain from {student_95(self.freedom) * self.value * math.sqrt(2):.3f} on"
        )


@dataclass(frozen=True)
class Effect:
    """A recipe's loss minus the baseline's, with the interval that holds it at 95 %."""

    value: float
    low: float
    high: float
    runs: int
    baseline_runs: int
    pairs: int = 0
    """How many seeds both were trained with; 0 where the difference is that of means."""
    freedom: int = 1

    @property
    def verdict(self) -> str:
        """`better` and `worse` where the interval leaves out zero."""
        if self.low <= 0 <= self.high:
            return "too few seeds" if self.freedom < FEW else "within noise"
        return "better" if self.value < 0 else "worse"

    def words(self) -> str:
        """The effect and its interval."""
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def student_95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t; beyond the table the leading term of its expansion."""
    return STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else 1.96 + 2.4 / freedom


def effect_of(own: Mapping[int, float], base: Mapping[int, float], deviation: Deviation) -> Effect:
    """Of two recipes, each with the loss of each of its seeds. Runs of one seed start from the same values in every
    tensor that they share, so two such pairs or more are compared pair by pair: their seeds' noise cancels."""
    shared = sorted(own.keys() & base.keys())
    if len(shared) > 1:
        apart = [own[seed] - base[seed] for seed in shared]
        error, freedom = statistics.stdev(apart) / math.sqrt(len(apart)), len(apart) - 1
        return _effect(statistics.mean(apart), error, freedom, (len(own), len(base)), len(shared))
    error = deviation.value * math.sqrt(1 / len(own) + 1 / len(base))
    value = statistics.mean(own.values()) - statistics.mean(base.values())
    return _effect(value, error, deviation.freedom, (len(own), len(base)), 0)


def _effect(value: float, error: float, freedom: int, runs: tuple[int, int], pairs: int) -> Effect:
    reach = student_95(freedom) * error
    return Effect(value, value - reach, value + reach, *runs, pairs, freedom)


def pooled(groups: Sequence[Sequence[float]]) -> Deviation:
    """Over groups of runs that differ by their seed alone; groups of one say nothing."""
    telling = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in telling)
    if not freedom:
        return Deviation()
    value = math.sqrt(sum((len(group) - 1) * statistics.variance(group) for group in telling) / freedom)
    return Deviation(value, "own", sum(map(len, telling)), freedom) if value > 0 else Deviation()

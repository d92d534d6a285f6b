"""One line of the benchmark's table: what was measured, against what, and what was aimed at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """`ours` and `theirs` in `unit`; `value` is what the aim is about (a ratio, or ours itself)."""

    name: str
    ours: float
    unit: str
    aim: str
    met: bool
    theirs: float | None = None
    against: str = ""
    value: float | None = None

    def line(self) -> str:
        """For the table."""
        theirs = f"{self.theirs:.3g} {self.unit} {self.against}" if self.theirs is not None else ""
        value = f"{self.value:.2f}x" if self.value is not None else ""
        word = "met" if self.met else "NOT met"
        return f"{self.name:<44} {self.ours:>9.3g} {self.unit:<6} {theirs:<34} {value:>7}  {self.aim:<24} {word}"

    def to_json(self) -> dict[str, Any]:
        """For bench-results/."""
        return asdict(self)


def at_most(name: str, ours: float, theirs: float, unit: str, against: str, factor: float) -> Figure:
    """Less is better: ours over theirs, at most `factor`."""
    ratio = ours / theirs
    return Figure(name, ours, unit, f"at most {factor:g}x", ratio <= factor, theirs, against, ratio)


def at_least(name: str, ours: float, theirs: float, unit: str, against: str, factor: float) -> Figure:
    """More is better: ours over theirs, at least `factor`."""
    ratio = ours / theirs
    return Figure(name, ours, unit, f"at least {factor:g}x", ratio >= factor, theirs, against, ratio)


def within(name: str, ours: float, unit: str, limit: float) -> Figure:
    """Less is better, against a fixed limit."""
    return Figure(name, ours, unit, f"at most {limit:g} {unit}", ours <= limit)

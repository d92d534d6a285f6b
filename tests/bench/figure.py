"""One line of the benchmark's table: what was measured, against what, and what was aimed at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class CannotRun(Exception):
    """What a benchmark needs is not on this machine: no root, no card. Its row says so; nothing has failed."""


@dataclass(frozen=True)
class Figure:
    """`ours` and `theirs` in `unit`; `value` is what the aim is about (a ratio, or ours itself).

    `met` is None where nothing was aimed at; `ours` is None where nothing was measured, and `why` says why.
    """

    name: str
    ours: float | None
    unit: str
    aim: str = ""
    met: bool | None = None
    theirs: float | None = None
    against: str = ""
    value: float | None = None
    why: str = ""

    def line(self) -> str:
        """For the table."""
        if self.ours is None:
            return f"{self.name:<44} {'-':>9} {'':<6} {self.why}"
        theirs = f"{number(self.theirs)} {self.unit} {self.against}" if self.theirs is not None else ""
        value = f"{self.value:.2f}x" if self.value is not None else ""
        word = {True: "met", False: "NOT met", None: ""}[self.met]
        return (
            f"{self.name:<44} {number(self.ours):>9} {self.unit:<6} {theirs:<34} {value:>7}  {self.aim:<16} {word}"
        ).rstrip()

    def to_json(self) -> dict[str, Any]:
        """For bench-results/."""
        return asdict(self)


def number(value: float) -> str:
    """Three significant digits, and never fewer than the integer has."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


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
    return Figure(name, ours, unit, f"at most {limit:g} {unit}".rstrip(), ours <= limit)


def not_measured(name: str, why: str) -> Figure:
    """A row that says why it has no figure."""
    return Figure(name, None, "", why=why)

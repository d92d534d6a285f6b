"""A chart as a value: what the HTML page, the PNG and the SVG file draw. It must not know how a chart looks.

Example::

    Chart("loss", "Loss", "nats per token", "step", (1, 2), (Series("training loss", "line", (3.5, 3.4)),))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float | None]


@dataclass(frozen=True)
class Series:
    """One curve of a chart. A value of None leaves a gap."""

    label: str
    kind: str
    """`line`, `faint` (behind its own mean) or `points`."""
    values: Values
    color: str = ""
    """A CSS variable such as `--c3`; empty for the first colours."""

    @property
    def is_empty(self) -> bool:
        return all(value is None for value in self.values)

    def to_json(self) -> dict[str, object]:
        """As plot.js reads it."""
        color = {"color": self.color} if self.color else {}
        return {"label": self.label, "kind": self.kind, **color, "values": list(self.values)}


@dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    key: str
    """Names its place on the page and its file."""
    title: str
    unit: str
    x: str
    """What the axis shows."""
    xs: Values
    series: tuple[Series, ...]
    order: tuple[str, ...] = ()
    """In a comparison: the runs' ids in the order of the series."""

    def to_json(self) -> dict[str, object]:
        """As plot.js reads it."""
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "x": self.x,
            "xs": list(self.xs),
            "series": [each.to_json() for each in self.series],
        }

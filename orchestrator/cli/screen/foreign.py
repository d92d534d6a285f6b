"""Values of a remote machine made safe to show. Pure functions; no Rich, no I/O.

Example::

    >>> clean("\\x1b[31mred"), finite("nan"), finite(3)
    ('red', None, 3.0)
"""

from __future__ import annotations

import math

from orchestrator.core.foreign_text import clean

__all__ = ["clean", "finite"]


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else None: a trainer's JSON lines may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None

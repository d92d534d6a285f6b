"""The lines of the log as people read them: rounded, with units, without what says nothing. Pure functions.

The exact values are in metrics.jsonl and events.jsonl.

Example::

    >>> event_line("checkpointed", 10, {"folder": "step-000010", "size_bytes": 6141581, "seconds": 0.382, "best": True})
    'step 10  checkpointed  step-000010  6.1 MB  0.4 s  best'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

LEAST_MFU = 0.001
"""A processor has no datasheet to compare with: its share is 0."""


def metrics_line(step: int, values: Mapping[str, object]) -> str:
    """One line per logged step; `values` as in metrics.jsonl."""
    return _joined(step, [], values)


def event_line(name: str, step: int, fields: Mapping[str, object]) -> str:
    """One line per event; `fields` as in events.jsonl."""
    return _joined(step, [name], fields)


def _joined(step: int, first: list[str], values: Mapping[str, object]) -> str:
    parts = [f"step {step}", *first, *(_words(key, value) for key, value in values.items())]
    return "  ".join(part for part in parts if part)


def _words(key: str, value: object) -> str:
    """A value with its name or its unit; empty if it says nothing."""
    if value is None or value is False or value == "":
        return ""
    if value is True:
        return key
    if key in UNITS and isinstance(value, int | float):
        return UNITS[key](float(value))
    if key in BARE:
        return str(value)
    text = f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", "\\n")
    return f"{key.replace('_', ' ')} {text}"


def _size(size_bytes: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def _count(value: float) -> str:
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.0f}"


BARE = ("folder", "doing")
UNITS: Mapping[str, Callable[[float], str]] = {
    "loss": lambda value: f"loss {value:.4f}",
    "val_loss": lambda value: f"val loss {value:.4f}",
    "lr": lambda value: f"lr {value:.2e}",
    "grad_norm": lambda value: f"grad norm {value:.2f}",
    "tokens_per_second": lambda value: f"{_count(value)} tok/s",
    "mfu": lambda value: f"MFU {100 * value:.1f}%" if value >= LEAST_MFU else "",
    "memory_gib": lambda value: f"{value:.1f} GiB",
    "size_bytes": _size,
    "seconds": lambda value: f"{value:.1f} s",
    "parameters": lambda value: f"{_count(value)} parameters",
    "total_steps": lambda value: f"{value:,.0f} steps",
}
"""Key -> the value with its unit."""

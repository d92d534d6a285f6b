"""Numbers as people read them, and foreign text made safe to print. Pure functions; no Rich, no I/O.

Example::

    >>> money(0.0042), duration(3725), size(2_500_000_000)
    ('$0.0042', '1h 02m', '2.50 GB')
"""

from __future__ import annotations

import math
import re
import time

NOTHING = "-"

_ESCAPES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # OSC: titles, links, clipboard writes
    r"|\x1b[P^_X][^\x1b]*(?:\x1b\\|$)"  # DCS, PM, APC, SOS
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]"  # CSI and two-character escapes
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """Text of a remote machine without terminal escapes and control characters; tabs and newlines stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def number(value: object) -> float | None:
    """The value as a float if it is a finite number, else None: JSON lines of a trainer may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def money(usd: float | None) -> str:
    """Dollars: two digits, more below a dime."""
    if usd is None:
        return NOTHING
    return f"${usd:,.4f}" if 0 < abs(usd) < 0.1 else f"${usd:,.2f}"


def duration(seconds: float | None) -> str:
    """`4s`, `3m 20s`, `1h 02m`, `2d 05h`."""
    if seconds is None:
        return NOTHING
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def hours(value: float | None) -> str:
    """A duration given in hours."""
    return NOTHING if value is None else duration(value * 3600)


def size(size_bytes: float | None) -> str:
    """Bytes in decimal units, as networks and disks are sold."""
    if size_bytes is None:
        return NOTHING
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def count(value: float | None) -> str:
    """`950`, `25.9k`, `3.26B`: token counts and rates."""
    if value is None:
        return NOTHING
    if abs(value) < 1000:
        return f"{value:.0f}"
    for unit, scale in (("k", 1e3), ("M", 1e6), ("B", 1e9)):
        if abs(value) < 999.5 * scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value / 1e12:.3g}T"


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number with fixed digits."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage; 0 means "not known" for MFU and is shown as such."""
    return NOTHING if not fraction else f"{100 * fraction:.1f}%"


def moment(epoch_s: float | None) -> str:
    """A UTC time in this machine's zone, with the zone's name."""
    return NOTHING if epoch_s is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(epoch_s))

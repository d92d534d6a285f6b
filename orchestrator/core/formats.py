"""Numbers as people read them, written one way in the terminal, the reports and the model card. Pure functions, no I/O.

A value that is not known (None) is a dash. Counts, rates and times keep about three digits (`25.9k`, `1h 02m`); what
identifies something (a step, a token position) is written in full by `number`.

Example::

    >>> dollars(0.0042), duration(3725), size(2_500_000_000), count(25_912)
    ('$0.0042', '1h 02m', '2.50 GB', '25.9k')
"""

from __future__ import annotations

import math
import time

DASH = "-"


def number(value: float | None, digits: int = 0) -> str:
    """`33,165`, `2.35`: in full, with thousands separators and fixed decimals."""
    return DASH if value is None else f"{value:,.{digits}f}"


def loss(value: float | None) -> str:
    """Nats per token with four decimals: seeds differ in the second, recipes in the third."""
    return number(value, 4)


def figure(value: float | None) -> str:
    """Three significant digits, never in powers of ten: energy, carbon, hours."""
    if value is None:
        return DASH
    digits = 2 if abs(value) >= 1 or value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{digits}f}"


def count(value: float | None) -> str:
    """`950`, `25.9k`, `3.26B`: parameters, tokens, tokens per second."""
    if value is None:
        return DASH
    if abs(value) < 999.5:
        return f"{value:.0f}"
    for unit, scale in (("k", 1e3), ("M", 1e6), ("B", 1e9)):
        if abs(value) < 999.5 * scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value / 1e12:.3g}T"


def dollars(usd: float | None) -> str:
    """`$1,234.50`; below a dime two significant digits, so that a cheap run does not cost $0.00."""
    if usd is None:
        return DASH
    amount = abs(usd)
    digits = 2 if amount == 0 or amount >= 0.1 else 1 - math.floor(math.log10(amount))
    return f"{'-' if usd < 0 else ''}${amount:,.{digits}f}"


NEARLY, NEARLY_USD = 0.05, 1.0
"""A range that is narrower than this fraction of its end, and than this many dollars, reads as one figure."""


def dollars_between(low: float | None, usd: float | None, high: float | None) -> str:
    """`$1.33`, or `$0.53 to $1.33` where the ends of an estimate differ by more than a reader cares for."""
    if usd is None or low is None or high is None:
        return dollars(usd)
    width = high - low
    nearly = width <= NEARLY * abs(high) and width < NEARLY_USD
    return dollars(usd) if nearly or dollars(low) == dollars(high) else f"{dollars(low)} to {dollars(high)}"


def duration(seconds: float | None) -> str:
    """`0.3s`, `4s`, `3m 20s`, `1h 02m`, `2d 05h`."""
    if seconds is None:
        return DASH
    if seconds < 0.95:
        return f"{max(0.0, round(seconds, 1)):g}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def hours(value: float | None) -> str:
    """A duration given in hours."""
    return DASH if value is None else duration(value * 3600)


def size(size_bytes: float | None) -> str:
    """Bytes in decimal units, as networks and disks are sold."""
    if size_bytes is None:
        return DASH
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.995:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def percent(fraction: float | None) -> str:
    """`38.2%` of a fraction."""
    return DASH if fraction is None else f"{100 * fraction:.1f}%"


def utc_time(epoch_s: float | None) -> str:
    """UTC to the second: for pages that others read."""
    return DASH if epoch_s is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch_s))


def local_time(epoch_s: float | None) -> str:
    """The same moment in this computer's zone, with the zone's name: for the terminal."""
    return DASH if epoch_s is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(epoch_s))

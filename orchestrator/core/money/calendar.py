"""When the day and the month began, by which spending is summed: by this computer's own calendar.

Example: `ledger.spend_since(month_start(time.time()))`
"""

from __future__ import annotations

import time


def day_start(now: float) -> float:
    """UTC epoch seconds of the first moment of this day."""
    today = time.localtime(now)
    return time.mktime((today.tm_year, today.tm_mon, today.tm_mday, 0, 0, 0, 0, 0, -1))


def month_start(now: float) -> float:
    """UTC epoch seconds of the first moment of this month."""
    today = time.localtime(now)
    return time.mktime((today.tm_year, today.tm_mon, 1, 0, 0, 0, 0, 0, -1))

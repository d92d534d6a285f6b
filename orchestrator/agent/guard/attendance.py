"""Whether a gptctl attends this machine: it follows, fetches or prepares, as far as the machine has heard of it.

A machine on which everything is done may be ended at once when no gptctl attends it; otherwise that gptctl ends it.
Counted as a lease of its own. It must not be renewed by anything that only looks, such as `status`.

Example::

    attend(places, FOLLOWED_S); is_attended(places)      # True, for 15 s
"""

from __future__ import annotations

import os

from ..contract.names import LEASE_S
from ..system import lease
from ..system.paths import Places
from . import records

FOLLOWED_S = 15.0
"""A follower beats every 2 s, and one that fell silent is noticed within 10 s."""
CALLED_S = 150.0
"""A gptctl that prepares or fetches calls once a minute, or four times a lease where that is more often; the transfers
themselves do not come through here."""
PERIODS = 2.5
"""That a caller may be late: CALLED_S, in calls."""


def attend(places: Places, duration_s: float) -> None:
    """A gptctl is here, and will be heard of again within duration_s. Only where a guard uses it."""
    if os.path.isdir(places.guard):
        lease.renew(_folder(places), duration_s, None)


def record_call(places: Places) -> None:
    """A gptctl has called, and will again: as often as the guard's lease asks for."""
    order = records.read_order(places)
    every_s = (order.get("lease_s", LEASE_S) if order else LEASE_S) / 4
    attend(places, min(CALLED_S, max(FOLLOWED_S, PERIODS * every_s)))


def leave(places: Places) -> None:
    """The gptctl that was here has gone."""
    lease.forget(_folder(places))


def is_attended(places: Places) -> bool:
    """Whether a caller is here, as far as this machine knows."""
    found = lease.read(_folder(places))
    return found is not None and found["left_s"] > 0


def _folder(places: Places) -> str:
    return os.path.join(places.guard, "presence")

"""Whether somebody is here: a gptctl that follows, fetches or prepares, as far as this machine has heard of it.

A machine on which everything is done may be ended at once when nobody is here; while somebody is, it is theirs to end.
Counted as a lease of its own. It must not be renewed by anything that only looks, such as `status`.

Example::

    attend(places, FOLLOWED_S); somebody_is_here(places)      # True, for 15 s
"""

from __future__ import annotations

import os

from ..contract.names import LEASE_S, FileName
from ..system import files, lease
from ..system.paths import Places

FOLLOWED_S = 15.0
"""A follower beats every 2 s, and one that fell silent is noticed within 10 s."""
CALLED_S = 150.0
"""Whoever prepares or fetches calls once a minute, or four times a lease where that is more often; the transfers
themselves do not come through here."""
PERIODS = 2.5
"""That a caller may be late: CALLED_S, in calls."""


def attend(places: Places, duration_s: float) -> None:
    """Somebody is here, and will be heard of again within duration_s. Only where there is a guard to tell."""
    if os.path.isdir(places.guard):
        lease.renew(_folder(places), duration_s, None)


def called(places: Places) -> None:
    """Somebody has called, and will again: as often as the guard's lease asks for."""
    order = files.read_json(os.path.join(places.guard, FileName.ORDER)) or {}
    every_s = float(order.get("lease_s") or LEASE_S) / 4
    attend(places, min(CALLED_S, max(FOLLOWED_S, PERIODS * every_s)))


def leave(places: Places) -> None:
    """Whoever was here has gone."""
    lease.forget(_folder(places))


def somebody_is_here(places: Places) -> bool:
    found = lease.read(_folder(places))
    return found is not None and found["left_s"] > 0


def _folder(places: Places) -> str:
    return os.path.join(places.guard, "presence")

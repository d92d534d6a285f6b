"""The two ways in which a guard ends its machine: a call of the provider's API with a key, or powering it off.

The guard's process decides when. These only do it, and check long before that it will work; the process calls `check`
again after `check_every_s`. A Trouble with `refused` means that the guard is not armed.

Example: `way_of(places, order).check(left_s=1800.0, deadline_left_s=7200.0)` -> None: all is well
"""

from __future__ import annotations

from typing import Mapping

from ..contract.names import GuardKind
from ..system import lease
from ..system.paths import Places
from . import api_key, power_off
from .records import Order
from .trouble import Trouble


def way_of(places: Places, order: Order) -> ByKey | ByPower:
    """The way that the order asks for."""
    return ByPower(places, order) if order.get("kind") == GuardKind.SELF else ByKey(places, order)


class ByKey:
    """POSTs the order's end call. The key is in memory, so that it works when the file is gone."""

    check_every_s = 300.0
    well = "the API accepts the key"

    def __init__(self, places: Places, order: Order) -> None:
        self.places, self.order = places, order
        self.key: str | None = None

    def is_renewed(self) -> bool:
        """A key that was replaced counts; one whose file is gone is still in memory."""
        fresh = api_key.read(self.places.root)
        if not fresh or fresh == self.key:
            return False
        self.key = fresh
        return True

    def is_able(self) -> bool:
        return self.key is not None

    def end(self) -> Trouble | None:
        trouble = self._call(self.order["end"]["url"], self.order["end"]["body"])
        if trouble is None:
            api_key.forget(self.places.root)  # should the machine live on, the key is still in memory
        return trouble

    def check(self, left_s: float, deadline_left_s: float | None) -> Trouble | None:
        """Whether the API can be reached from here and takes the key."""
        return self._call(self.order["look_url"])

    def _call(self, url: str, body: Mapping[str, object] | None = None) -> Trouble | None:
        from . import api_call  # a third of the time of every status, which makes no call

        trouble = api_call.call(url, self.key or "", body)
        return (
            Trouble("%s: the key is refused" % trouble.text, refused=True) if trouble and trouble.refused else trouble
        )


class ByPower:
    """Powers the machine off, and keeps the operating system's timer a little behind that moment: should this process
    die, the timer acts. The timer never goes beyond the deadline."""

    check_every_s = 10.0
    well = "the timer runs"

    def __init__(self, places: Places, order: Order) -> None:
        self.places, self.order = places, order
        self.moved_at_s = float("-inf")

    def is_renewed(self) -> bool:
        return False

    def is_able(self) -> bool:
        return True

    def end(self) -> Trouble | None:
        return power_off.power_off_now(self.order["rental"])

    def check(self, left_s: float, deadline_left_s: float | None) -> Trouble | None:
        """Moves the timer where it has to be, and reads it back."""
        slack_s = slack(self.order["lease_s"])
        aim_s = left_s + slack_s if deadline_left_s is None else min(left_s + slack_s, deadline_left_s)
        found = power_off.read_timer()
        if lease.now_s() - self.moved_at_s >= slack_s or not _is_near(found, aim_s, slack_s, deadline_left_s):
            trouble = power_off.move(self.order["rental"], aim_s)
            if trouble:
                return Trouble(trouble.text, refused=True)
            self.moved_at_s = lease.now_s()
            lease.renew(self.places.guard, 0.0, None)  # what is left is written down now: a reboot counts from there
            found = power_off.read_timer()
        runs = found is not None and found["left_s"] is not None
        return None if runs else Trouble("the timer that powers this machine off does not run", refused=True)


def _is_near(found: power_off.Timer | None, aim_s: float, slack_s: float, deadline_left_s: float | None) -> bool:
    """Whether the timer may stay as it is."""
    left_s = found["left_s"] if found else None
    if left_s is None or abs(left_s - aim_s) > slack_s:
        return False
    return deadline_left_s is None or bool(left_s <= deadline_left_s + 1)


def slack(lease_s: float) -> float:
    """Seconds that the timer may be behind the guard, and that may pass before it is set again."""
    return max(5.0, min(300.0, lease_s / 4))

"""An account that sells machines in two regions, keeps its own bill, and does `how` with order number `wrong`.

Example: `Seller(how="quota", wrong=1)`      # the first machine is sold, and the second is above a quota
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.core.errors import AmbiguousLaunch, NoAnswer, NoCapacity, ProviderError, QuotaUsedUp
from orchestrator.core.ports import Address, EndCall, Instance, LaunchRequest, Offer
from tests.support.machines.lying_account import MACHINE, PRICE, LyingAccount

REGIONS = ("us-west-1", "us-east-1")


@dataclass
class Seller(LyingAccount):
    """Sells machines in two regions, and does `how` with order number `wrong`."""

    how: str = ""
    wrong: int = 0
    lag_s: float = 0.0
    """A machine whose order got no answer shows in lists so much later."""
    asked: list[LaunchRequest] = field(default_factory=list)
    bought_at: dict[str, float] = field(default_factory=dict)
    ended_s: dict[str, float] = field(default_factory=dict)
    shown_at: dict[str, float] = field(default_factory=dict)
    sold_out: set[str] = field(default_factory=set)
    ends_by_power_off: bool = False

    def offers(self, deadline_s: float = 30.0) -> Sequence[Offer]:
        return [Offer("lambda", MACHINE, PRICE, "gpu_8x_a100", region) for region in REGIONS]

    def machines(self) -> Sequence[Instance]:
        self._answer()
        return [row for key, row in self.rows.items() if self.shown_at.get(key, 0.0) <= self.now]

    def acquire(self, request: LaunchRequest) -> Instance:
        self._answer()
        self.asked.append(request)
        how = self.how if len(self.asked) == self.wrong + 1 else ""
        if how == "capacity ends there":
            self.sold_out.add(request.offer.region)
        if how == "capacity ends everywhere":
            self.sold_out |= {*REGIONS}
        if request.offer.region in self.sold_out:
            raise NoCapacity("no capacity")
        if how == "quota":
            raise QuotaUsedUp("quota")
        if how == "refused":
            raise ProviderError("status 400")
        if how == "not sent":
            raise NoAnswer("no answer", sent=False)
        if how == "no answer, nothing bought":
            raise AmbiguousLaunch("no answer")
        sold = self._sell(request, "unhealthy" if how == "unhealthy" else "active")
        if how == "refused, and bought all the same":
            raise NoCapacity("no capacity")
        if how == "no answer, and bought":
            self.shown_at[sold.instance_id] = self.now + self.lag_s
            raise AmbiguousLaunch("no answer")
        return replace(sold, status="booting", address=None)

    def _sell(self, request: LaunchRequest, status: str) -> Instance:
        name = f"i-{len(self.bought_at)}"
        self.bought_at[name] = self.now
        self.rows[name] = Instance(
            "lambda", name, MACHINE, Address(f"10.0.0.{len(self.rows)}", identity=name), status, request.rental_id,
            request.intent_id, request.offer.price_per_hour_usd, region=request.offer.region,
            private_address=f"10.1.0.{len(self.rows)}",
        )  # fmt: skip
        return self.rows[name]

    def end(self, instance_id: str) -> None:
        super().end(instance_id)
        self.ended_s.setdefault(instance_id, self.now)

    def ended_at(self, instance: Instance) -> float | None:
        return None

    def notice_url(self, instance: Instance) -> str | None:
        return None

    def end_call(self, instance: Instance) -> EndCall | None:
        return None

    def allow_caller(self, instance: Instance, via: object = None) -> None:
        return None

    def take_warnings(self) -> Sequence[str]:
        return ()

    def tidy(self, rental_id: str) -> Sequence[str]:
        return ()

    @property
    def alive(self) -> list[str]:
        return [name for name in self.bought_at if name not in self.ended_s]

    @property
    def bill_usd(self) -> float:
        lasted = [self.ended_s[name] - at for name, at in self.bought_at.items()]
        return sum(max(1, math.ceil(seconds / 60)) for seconds in lasted) * PRICE / 60

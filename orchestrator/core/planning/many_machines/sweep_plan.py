"""What a sweep takes: hours and dollars of each arm and of all, one machine after the other or several side by side.

Pure. The first arm on a machine pays for its start; the machine prepares the others while it trains.

Example: `sweep_plan([("baseline", 42, plan), ...], ceiling_usd=90.0, machines=1).fits`      # 8: of 24 arms
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.errors import LimitReached
from orchestrator.core.planning.limits import reserve_s
from orchestrator.core.planning.plan import Plan


@dataclass(frozen=True)
class ArmCost:
    """One arm of a sweep: hours and USD that it adds, and what all up to it have cost by then."""

    arm: str
    seed: int
    machine: int
    """Which of the machines runs it, from 0."""
    steps: int
    hours: float
    cost_usd: float | None
    total_usd: float | None
    fits: bool
    """Under the ceiling, as far as is known now."""


@dataclass(frozen=True)
class SweepPlan:
    """All arms in their order."""

    arms: tuple[ArmCost, ...]
    ceiling_usd: float | None
    hours: float
    """Until the last machine is done."""
    cost_usd: float | None

    @property
    def fits(self) -> int:
        """How many arms fit under the ceiling."""
        return sum(arm.fits for arm in self.arms)


def sweep_plan(
    arms: Sequence[tuple[str, int, Plan]], *, ceiling_usd: float | None, machines: int, by_seed: bool = False
) -> SweepPlan:
    """Arms in turn on the machine that is free first. Every machine gets its share of the ceiling, by the work it has.

    ceiling_usd: over all; None: twice what all arms need, on paid machines. by_seed: arms of one seed share a machine,
    where each can be compared with its baseline.
    """
    busy_h = [0.0] * max(1, min(machines, len(arms)))
    spent: list[float] = [0.0] * len(busy_h)
    placed: list[tuple[str, int, Plan, int, float]] = []
    of_seed: dict[int, int] = {}
    for name, seed, plan in arms:
        free = busy_h.index(min(busy_h))
        machine = of_seed.setdefault(seed, free) if by_seed else free
        added_h = plan.hours.train + (0.0 if busy_h[machine] else plan.hours.total - plan.hours.train)
        busy_h[machine] += added_h
        placed.append((name, seed, plan, machine, added_h))
    prices = {plan.price_per_hour_usd for _, _, plan in arms}
    price = max((each for each in prices if each is not None), default=None)
    whole_usd = None if price is None else price * sum(busy_h)
    if ceiling_usd is None and whole_usd is not None and any(plan.paid for _, _, plan in arms):
        ceiling_usd = max(2 * whole_usd, price or 0.0)
    total, started = 0.0, set[int]()
    found = []
    for name, seed, plan, machine, added_h in placed:
        cost_usd = None if price is None else price * added_h
        total += cost_usd or 0.0
        # The first that fits pays for the machine's start: one before it that does not would not have started it.
        begins_h = plan.hours.train + (0.0 if machine in started else plan.hours.total - plan.hours.train)
        needs_usd = 0.0 if price is None else price * begins_h
        share = share_usd(ceiling_usd, busy_h, machine)
        # The time to save and fetch at the end of a machine is kept free of training.
        reserved = 0.0 if price is None or not plan.paid else price * (reserve_s(plan) / 3600 - plan.hours.fetch)
        fits = share is None or spent[machine] + needs_usd + max(0.0, reserved) <= share
        if fits:
            spent[machine] += needs_usd
            started.add(machine)
        found.append(
            ArmCost(name, seed, machine, plan.steps_left, added_h, cost_usd, None if price is None else total, fits)
        )
    return SweepPlan(tuple(found), ceiling_usd, max(busy_h), whole_usd)


def share_usd(ceiling_usd: float | None, busy_h: Sequence[float], machine: int) -> float | None:
    """The part of the ceiling that one machine may spend: the parts add up to it, so no machine has to ask another."""
    if ceiling_usd is None:
        return None
    return ceiling_usd * busy_h[machine] / sum(busy_h) if sum(busy_h) else ceiling_usd / len(busy_h)


def shares_usd(plan: SweepPlan) -> list[float | None]:
    """The ceilings of the machines, in order."""
    count = 1 + max((arm.machine for arm in plan.arms), default=0)
    busy_h = [sum(arm.hours for arm in plan.arms if arm.machine == machine) for machine in range(count)]
    return [share_usd(plan.ceiling_usd, busy_h, machine) for machine in range(count)]


def check_sweep(name: str, plan: SweepPlan) -> None:
    """Raises LimitReached where not even the first arm fits under the ceiling."""
    if plan.arms and not plan.arms[0].fits:
        first = plan.arms[0]
        raise LimitReached(
            f"sweep {name}: the first arm, {first.arm}, needs ${first.cost_usd or 0:.2f} and time to save at the end, "
            f"and the ceiling over all is ${plan.ceiling_usd or 0:g}",
            "raise limits.max_cost_usd of the sweep, or choose a cheaper host",
        )

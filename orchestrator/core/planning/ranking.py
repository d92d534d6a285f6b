"""Plans side by side: which one is the cheapest, the fastest, and in which order they are shown.

Each counts by the far end of its range: a guess of +-50 % does not beat a measured figure by its middle.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.machines import machine_type
from orchestrator.core.planning.plan import Plan

LONGEST_WAIT_H = 60 * 24
"""A plan of more than two months is not an alternative to the others, however cheap."""
LONGEST_REHEARSAL_H = 24.0


def most_usd(plan: Plan) -> float | None:
    """What the run costs where the training takes as long as its uncertainty allows; None without a price."""
    estimate = plan.cost_usd.estimate
    return None if estimate is None else estimate.high


def most_hours(plan: Plan) -> float:
    """How long the run takes then."""
    return plan.hours.total + plan.hours.train * plan.uncertainty


def mark(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """For each plan, in order: which of `cheapest` and `fastest` it is, of those that fit and end in time."""
    able = [plan for plan in plans if plan.fits and plan.hours.total <= LONGEST_WAIT_H]
    priced = [high for plan in able if (high := most_usd(plan)) is not None]
    least_usd, least_h = min(priced, default=None), min(map(most_hours, able), default=None)
    return [
        tuple(
            word
            for word, value, best in (
                ("cheapest", most_usd(plan), least_usd),
                ("fastest", most_hours(plan), least_h),
            )
            if plan in able and value is not None and value == best
        )
        for plan in plans
    ]


def in_order(plans: Sequence[Plan]) -> list[Plan]:
    """Cheapest first, those without a price after them, those that do not fit last."""
    return sorted(plans, key=lambda plan: (not plan.fits, plan.cost_usd.total is None, most_usd(plan) or 0))


def worth_showing(plans: Sequence[Plan], best: int) -> list[Plan]:
    """Your hosts, then the `best` machine types that belong to none, each in the given order. A simulated machine that
    would train for more than a day is left out: nobody rehearses that long."""
    yours = [plan for plan in plans if plan.host and not (_simulated(plan) and plan.hours.total > LONGEST_REHEARSAL_H)]
    others = [plan for plan in plans if not plan.host and plan.fits and plan.hours.total <= LONGEST_WAIT_H]
    return [*yours, *others[:best]]


def _simulated(plan: Plan) -> bool:
    return machine_type(plan.machine).runs_as is not None

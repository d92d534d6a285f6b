"""Plans side by side: which one is the cheapest, the fastest, and in which order they are shown."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.core.planning.plan import Plan

LONGEST_WAIT_H = 60 * 24
"""A plan of more than two months is not an alternative to the others, however cheap."""


def mark(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """For each plan, in order: which of `cheapest` and `fastest` it is, of those that fit and end in time."""
    able = [plan for plan in plans if plan.fits and plan.hours.total <= LONGEST_WAIT_H]
    priced = [total for plan in able if (total := plan.cost_usd.total) is not None]
    least_usd, least_h = min(priced, default=None), min((plan.hours.total for plan in able), default=None)
    return [
        tuple(
            word
            for word, value, best in (
                ("cheapest", plan.cost_usd.total, least_usd),
                ("fastest", plan.hours.total, least_h),
            )
            if plan in able and value is not None and value == best
        )
        for plan in plans
    ]


def in_order(plans: Sequence[Plan]) -> list[Plan]:
    """Cheapest first, those without a price after them, those that do not fit last."""
    return sorted(plans, key=lambda plan: (not plan.fits, plan.cost_usd.total is None, plan.cost_usd.total or 0))

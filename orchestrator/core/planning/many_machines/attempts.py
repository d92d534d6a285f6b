"""Whether a run whose machine was taken away goes on elsewhere, where it is cheapest to go on, and what that saved.

Pure arithmetic; stages/outcome/next_attempt.py gathers the facts.

Example: `expected_usd(plan, 1.71, from_step=400, risk_per_h=hazard_per_h(2, spot_h=5.0), interval_h=0.1)`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.planning.plan import Plan

PRIOR_H = 8.0
"""Before a run has seen any, one interruption of a spot machine is expected in so many hours: assumed, not measured."""
FRUITLESS_AT_MOST = 3
"""So many machines in a row may be taken away before any of them kept a new checkpoint."""
FEWEST_STEPS_H = 1 / 60
"""Less time for training than this is not worth another machine."""


def hazard_per_h(interruptions: int, spot_h: float) -> float:
    """Interruptions expected in an hour on the spot market, from those of this run and the prior."""
    return (1 + interruptions) / (PRIOR_H + spot_h)


def expected_usd(
    plan: Plan, price_per_hour_usd: float, *, from_step: int, risk_per_h: float, interval_h: float
) -> float:
    """USD until the training is over on such a machine: getting it ready, what is left to train, the fetch, and what
    interruptions are expected to repeat. Offers compared by it are compared by dollars per remaining token.

    risk_per_h: 0 on demand. interval_h: between two checkpoints; half of it is lost each time, and getting ready.
    """
    hours = plan.hours
    ready_h = hours.boot + hours.provision + hours.data
    train_h = _left(plan, from_step)
    again_h = risk_per_h * train_h * (interval_h / 2 + ready_h)
    return price_per_hour_usd * (ready_h + train_h + hours.fetch + again_h)


def _left(plan: Plan, from_step: int) -> float:
    """Hours of training from that step on."""
    return plan.hours.train * max(0, plan.steps - from_step) / max(1, plan.steps_left)


@dataclass(frozen=True)
class Standing:
    """A run whose machine is gone. interruptions: this one too; fruitless: those in a row without a new checkpoint."""

    interruptions: int
    fruitless: int
    left_usd: float | None
    """Under its ceiling; None: it has none."""
    left_h: float | None = None
    """Under max_hours."""


def why_not(plan: Plan, standing: Standing, most: int) -> str | None:
    """Why it does not go on; None where it does."""
    if standing.interruptions > most:
        return f"it was interrupted {standing.interruptions} times, and --max-interruptions is {most}"
    if standing.fruitless >= FRUITLESS_AT_MOST:
        return f"{standing.fruitless} machines in a row were taken away before a new checkpoint was safe"
    hours, price = plan.hours, plan.price_per_hour_usd or 0.0
    needs_h = hours.boot + hours.provision + hours.data + hours.fetch + FEWEST_STEPS_H
    if standing.left_usd is not None and standing.left_usd < needs_h * price:
        return f"${max(0.0, standing.left_usd):.2f} are left under its ceiling, and to go on takes more"
    if standing.left_h is not None and standing.left_h < needs_h:
        return f"{max(0.0, standing.left_h):.1f} h are left of max_hours, and to go on takes more"
    return None


@dataclass(frozen=True)
class Stretch:
    """Time on one machine, in one stage."""

    rental: int
    """Which one of the run's machines, from 0."""
    stage: str
    hours: float


def on_demand_usd(stretches: Sequence[Stretch], price_per_hour_usd: float, lost_h: float) -> float:
    """What the same training would have cost on one machine that nobody takes away: without the steps that were
    trained twice, and ready once."""
    twice_h = sum(
        each.hours for each in stretches if each.rental and each.stage in ("acquire", "provision", "sync", "launch")
    )
    whole_h = sum(each.hours for each in stretches)
    return max(0.0, whole_h - twice_h - lost_h) * price_per_hour_usd

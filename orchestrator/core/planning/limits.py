"""What a run may cost, compared with what it is expected to cost, and the moment its machine must be gone.

Pure; refuses before anything is bought.

Example: `check_plan(plan)` raises LimitReached for a plan of $81 under `max_cost_usd = 60`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.agent.contract.names import GRACE_S
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, MachineRow, Recipe
from orchestrator.core.errors import LimitReached, ProviderError, UserError
from orchestrator.core.machines import MachineType
from orchestrator.core.planning.price import Quote

if TYPE_CHECKING:
    from orchestrator.core.planning.plan import Plan

DEAREST_PER_HOUR_USD = 1_000.0
"""No machine here costs a tenth of it: a higher price is a mistake, not an offer."""


def combine(recipe: Recipe, machine: MachineType, host: HostSpec | None, typed: Limits | None) -> Limits:
    """The tightest of the recipe's limits, its row for this machine, the host entry's and those typed as flags."""
    row = recipe.machines.get(machine.name, MachineRow())
    sources = [recipe.limits, row, host, typed]

    def tightest(name: str) -> float | None:
        values = [getattr(source, name, None) for source in sources]
        return min((value for value in values if value is not None), default=None)

    return Limits(**{name: tightest(name) for name in Limits.model_fields})


def ceiling_usd(limits: Limits, price: Quote, total_usd: float | None) -> float | None:
    """What the run may cost at most: its limit; without one, on a paid host, twice the plan and at least one hour."""
    if limits.max_cost_usd is not None:
        return limits.max_cost_usd
    if not price.paid or price.per_hour_usd is None or total_usd is None:
        return None
    return max(2 * total_usd, price.per_hour_usd)


def check_plan(plan: Plan) -> None:
    """Raises UserError for a plan that does not fit, ProviderError for one without a price or with an absurd one, and
    LimitReached for one beyond a limit."""
    where = f"plan: {plan.recipe} on {plan.host or plan.machine}"
    if not plan.fits:
        raise UserError(f"{where}: {plan.why}", hint="change that in the recipe, or choose another machine")
    price = plan.price_per_hour_usd
    if plan.paid and price is None:
        raise ProviderError(f"{where}: its provider lists no price for {plan.machine}", "gptctl offers shows its list")
    if plan.paid and price is not None and not 0 < price <= DEAREST_PER_HOUR_USD:
        raise ProviderError(f"{where}: a price of {price:.2f} USD per hour is refused", "gptctl offers shows its list")
    for name, value, unit in (
        ("max_price_per_hour_usd", price, "USD per hour"),
        ("max_hours", plan.hours.total, "hours"),
        ("max_cost_usd", plan.cost_usd.total, "USD"),
    ):
        limit: float | None = getattr(plan.limits, name)
        if limit is not None and value is not None and value > limit:
            text = f"{where}: the plan needs {value:.2f} {unit}, and {name} is {limit:g}"
            raise LimitReached(text, hint=f"raise {name}, or choose a cheaper plan: gptctl plan {plan.recipe}")


def check_guard(plan: Plan, host: HostSpec, *, unguarded: bool) -> None:
    """Raises UserError for a machine that would be paid for and that nothing ends when it is forgotten."""
    if not plan.paid or host.guard != "none" or unguarded:
        return
    watcher = (
        'guard = "watcher"   and run once on a machine that is always on:  gptctl orphans --install-timer   '
        "(or type --unguarded)"
    )
    itself = 'guard = "self"   which needs nothing else: the machine powers itself off   (or type --unguarded)'
    raise UserError(
        f"nothing would end {host.name} if it were forgotten: its guard is none",
        f"put into [hosts.{host.name}]:  {itself if host.provider == 'ec2' else watcher}",
    )


def check_month(plan: Plan, spent_usd: float, max_usd_per_month: float | None) -> None:
    """Raises LimitReached when what this month has cost so far and the plan together are above the monthly ceiling."""
    planned_usd = plan.cost_usd.total or 0.0
    if max_usd_per_month is None or not planned_usd or spent_usd + planned_usd <= max_usd_per_month:
        return
    raise LimitReached(
        f"plan: {plan.recipe} on {plan.host or plan.machine} needs ${planned_usd:.2f}; this month has cost "
        f"${spent_usd:.2f} so far, and max_usd_per_month is ${max_usd_per_month:g}",
        hint="gptctl cost shows where it went; raise limits.max_usd_per_month in config.toml, or wait for next month",
    )


def budget_s(plan: Plan) -> float | None:
    """Seconds from the start of the rental to the moment it must be gone; None where nothing limits it."""
    hours = [limit] if (limit := plan.limits.max_hours) is not None else []
    if plan.ceiling_usd is not None and plan.price_per_hour_usd:
        hours.append(plan.ceiling_usd / plan.price_per_hour_usd)
    return min(hours) * 3600 if hours else None


def reserve_s(plan: Plan, salvage_s: float | None = None) -> float:
    """Seconds before the budget deadline at which training stops: the grace, and the time to move best and latest.

    salvage_s: that time as measured; without it the plan's own estimate of the fetch.
    """
    return GRACE_S + (plan.hours.fetch * 3600 if salvage_s is None else salvage_s)


def train_deadline_s(plan: Plan, salvage_s: float | None = None) -> float | None:
    """Seconds from the start of the rental to the moment training must stop; None where nothing limits it."""
    budget = budget_s(plan)
    return None if budget is None else max(0.0, budget - reserve_s(plan, salvage_s))

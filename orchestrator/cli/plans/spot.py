"""`--spot` and `--max-interruptions`: on which markets a run may rent, and how often it goes on by itself.

Example: `recovery(host, plans, 5)` -> Recovery(most=5, on_demand={"8xA100-40GB": 15.92})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.cli.plans.plan import BEFORE_BUYING_WITHIN_S
from orchestrator.cli.screen import screen
from orchestrator.core.config.inventory import SPOT_MARKETS, HostSpec
from orchestrator.core.errors import UserError
from orchestrator.core.facts.run_facts import Recovery
from orchestrator.core.formats import dollars
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.plan import Plan
from orchestrator.core.suggest import one_of
from orchestrator.fleet.offers import ask_for, offer_for

USUAL_INTERRUPTIONS = 5
"""How often a run with --spot goes on, where --max-interruptions does not say."""


def on_spot_market(host: HostSpec) -> HostSpec:
    """The host, rented on the spot market. Raises UserError where there is none."""
    if host.provider not in SPOT_MARKETS:
        raise UserError(f"--spot: {host.provider} has no spot market; {one_of(SPOT_MARKETS)} has one", "omit --spot")
    return HostSpec.from_resolved({**host.resolved(), "spot": True})


def agreed(
    host: HostSpec, plans: Sequence[Plan], *, is_spot: bool, most: int | None, clashes: Mapping[str, bool]
) -> Recovery | None:
    """That a run goes on by itself when its machine is taken away, where you asked for that. clashes: options that name
    a machine, and whether you typed them. Raises UserError."""
    if not is_spot and most is None:
        return None
    option = "--spot" if is_spot else "--max-interruptions"
    for flag, is_given in clashes.items():
        if is_given:
            raise UserError(f"{option} rents another machine when one is taken away; {flag} names one", f"omit {flag}")
    return recovery(host, plans, USUAL_INTERRUPTIONS if most is None else most)


def recovery(host: HostSpec, plans: Sequence[Plan], most: int) -> Recovery:
    """What you agree to: at most so many interruptions, and of each machine type the price on demand, where that is
    within your limits. Raises UserError for a machine that nobody takes away."""
    if not host.paid:
        raise UserError(
            f"--max-interruptions: {host.name} is not rented, so nobody takes it away", "omit --max-interruptions"
        )
    if not host.spot:
        return Recovery(most=most)
    offers = ask_for([host], BEFORE_BUYING_WITHIN_S).offers
    there = host.model_copy(update={"spot": False})
    found = {plan.machine: offer_for(there, machine_type(plan.machine), offers) for plan in plans}
    prices = {plan.machine: plan.limits.max_price_per_hour_usd for plan in plans}
    on_demand = {
        name: offer.price_per_hour_usd
        for name, offer in found.items()
        if offer is not None and offer.price_per_hour_usd <= (prices[name] or offer.price_per_hour_usd)
    }
    return Recovery(most=most, on_demand=on_demand)


def show(agreed: Recovery, plan: Plan) -> None:
    """What follows an interruption, beside the plan."""
    price = agreed.on_demand.get(plan.machine)
    market = "" if price is None else f", on demand at {dollars(price)}/h where that is cheaper"
    ceiling = "" if plan.ceiling_usd is None else f"; all machines together cost at most {dollars(plan.ceiling_usd)}"
    screen.talk(f"taken    continues from its newest checkpoint, at most {agreed.most} times{market}{ceiling}")

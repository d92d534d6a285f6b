"""`gptctl plan`, and the plan that `gptctl run` shows before it asks.

Reads files and the ledger, and fetches prices and the headers of the data.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.cli.machine_types import machines_of
from orchestrator.cli.machines.offers import show_problems
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.plans.job_script import print_script
from orchestrator.cli.plans.origin import beginning, no_storage, storages
from orchestrator.cli.plans.plan_data import ask_source, data_lines, data_words, read_source, with_overlap
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column, footnotes
from orchestrator.core.checkpoints.store_places import check_scheme
from orchestrator.core.config.home_box import is_home
from orchestrator.core.config.inventory import HostSpec, Inventory, load_inventory
from orchestrator.core.config.recipe import Limits, Recipe, load_recipe
from orchestrator.core.errors import GptctlError, LimitReached, ProviderError, UserError
from orchestrator.core.formats import DASH, count, dollars, dollars_between, hours
from orchestrator.core.machines import MachineType, all_machine_types, machine_type
from orchestrator.core.planning import fetch_cost
from orchestrator.core.planning.demands import install_words, memory_words
from orchestrator.core.planning.fetch_cost import NO_RATES, Rates
from orchestrator.core.planning.limits import check_plan
from orchestrator.core.planning.plan import Plan
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.planning.ranking import in_order, mark, most_usd, worth_showing
from orchestrator.core.planning.rates import MeasuredRate
from orchestrator.core.ports import Offer
from orchestrator.fleet.offers import Market, ask_for, bundled, offer_for
from orchestrator.ledger.bills.fetch_rates import fetch_rates
from orchestrator.ledger.records import RateRecord

COLUMNS = (
    Column("HOST"),
    Column("MACHINE"),
    Column("BATCH", leaves=2),
    Column("STEPS", right=True, leaves=4),
    Column("TOK/S", right=True, leaves=3),
    Column("TIME", right=True),
    Column("COST", right=True),
    Column("$/H", right=True, leaves=1),
    Column("NOTE"),
    Column("BEST", leaves=5),
)
BEST_MACHINES = 5
"""Machine types of no host that the table shows without --all."""
MOST_TYPED = {"max_cost": 10_000_000, "max_hours": 100_000, "max_price": 10_000}
BEFORE_BUYING_WITHIN_S = 10.0
"""Longer than for showing prices: gptctl buys nothing at a bundled price that replaces a silent cloud's."""


def plan(
    name: str,
    host_names: list[str],
    sets: list[str],
    limits: Limits,
    file: Path | None,
    *,
    resume_from: str | None = None,
    offline: bool,
    everything: bool,
    as_json: bool,
    script: bool = False,
) -> int:
    """Prints one row per host, then the best machine types unless you named hosts; cheapest first, misfits last. With
    script: what would be submitted to the one host, alone."""
    recipe = load_recipe(name, sets)
    with open_ledger() as ledger:
        inventory = load_inventory(file, ledger.home)
        rates, fetches = ledger.rates(), fetch_rates(ledger.rentals())
        stores = no_storage if offline else storages(ledger, inventory)
        begun = beginning(ledger, resume_from, recipe, stores, None)
    chosen = [inventory.host(name) for name in host_names] or list(inventory.hosts.values())
    chosen = [host for host in chosen if _has_usable_store(host, inventory, is_named=bool(host_names))]
    asked = ask_source(recipe, offline=offline)
    market = Market(tuple(bundled())) if offline else ask_for(chosen)
    source = asked()
    from_step = begun.from_step
    planner = Planner(recipe, source.train_tokens, limits, rates, market.offers, from_step, fetches)
    places: list[tuple[HostSpec | None, MachineType]] = [(host, each) for host in chosen for each in machines_of(host)]
    if not host_names:
        places += [(None, machine) for machine in all_machine_types() if machine.runs_as is None]
    made = [(host, planner.plan(host, machine)) for host, machine in places]
    if script:
        return print_script(made)
    plans = in_order([replace(plan, data=with_overlap(source.moved(host, plan), ledger.home)) for host, plan in made])
    if as_json:
        anchors = [each.model_dump(exclude_none=True) for each in recipe.published]
        print(json.dumps({"plans": [each.to_json() for each in plans], "published": anchors}, indent=1))
        return 0
    _show_table(plans if everything or host_names else worth_showing(plans, BEST_MACHINES), len(plans))
    show_published(recipe)
    for line in data_lines(plans):
        screen.talk(f"data: {line}")
    for what, text in _demands(plans[0]) if plans else []:
        screen.talk(f"{what}: on {plans[0].host or plans[0].machine}, {text}")
    show_problems(market)
    return 0


def show_published(recipe: Recipe) -> None:
    """Prints what others published for this recipe: figures of their code, beside which ours can be seen."""
    for each in recipe.published:
        screen.talk(f"published: {each.words()}")


def _has_usable_store(host: HostSpec, inventory: Inventory, *, is_named: bool) -> bool:
    """Whether machines can write to the host's store. Raises UserError for a host that you named."""
    try:
        if (store := host.checkpoint_store or host.fetch_store) is not None:
            check_scheme(store)
            if is_home(store):
                inventory.home_box(store)
    except UserError as error:
        if is_named:
            raise
        screen.talk(f"host {host.name} is skipped: {error.message}; {error.hint}")
        return False
    return True


def typed_limits(
    max_cost_usd: float | None, max_hours: float | None, max_price_per_hour_usd: float | None = None
) -> Limits:
    """--max-cost, --max-hours and --max-price. Raises UserError for a limit that is not above zero."""
    typed = {"max_cost": max_cost_usd, "max_hours": max_hours, "max_price": max_price_per_hour_usd}
    for name, value in typed.items():
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
        if value is not None and value > (most := MOST_TYPED[name]):
            raise UserError(
                f"--{name.replace('_', '-')} {value:g}: must be at most {most:,}; a higher value limits nothing"
            )
    return Limits(max_cost_usd=max_cost_usd, max_hours=max_hours, max_price_per_hour_usd=max_price_per_hour_usd)


@dataclass(frozen=True)
class Planner:
    """Plans one recipe on several machines; `rates` are of earlier runs, `offers` from the clouds. `from_step`: of the
    checkpoint to resume from."""

    recipe: Recipe
    dataset_tokens: int | None
    limits: Limits
    rates: Sequence[RateRecord]
    offers: Sequence[Offer] = ()
    from_step: int = 0
    fetch_rates: Rates = field(default_factory=dict)

    def plan(self, host: HostSpec | None, machine: MachineType) -> Plan:
        """The plan there; it may not fit, and it may be beyond a limit."""
        offer = None if host is not None and not host.paid else offer_for(host, machine, self.offers)
        made = make_plan(
            self.recipe,
            host,
            machine,
            offer,
            rates=[_measured(rate) for rate in self.rates],
            dataset_tokens=self.dataset_tokens,
            now=time.time(),
            limits=self.limits,
            from_step=self.from_step,
            fetch_rates=self.fetch_rates,
        )
        if offer is None or offer.available:
            return made
        return replace(made, warnings=(*made.warnings, f"{offer.provider} lists no capacity now"))


def planned(
    recipe: Recipe, host: HostSpec, rates: Sequence[RateRecord], limits: Limits, *, from_step: int = 0,
    fetches: Rates = NO_RATES,
) -> list[Plan]:  # fmt: skip
    """One plan per machine type of the host that fits, in the order to try them: those with capacity first, then by
    dollars per run. Raises UserError if none fits, LimitReached if all cost too much, ProviderError if the provider
    names no price that can be believed."""
    source = read_source(recipe)
    market = ask_for([host], BEFORE_BUYING_WITHIN_S)
    planner = Planner(recipe, source.train_tokens, limits, rates, market.offers, from_step, fetches)
    made: list[tuple[bool, float, int, Plan]] = []
    problems: list[GptctlError] = []
    for machine in machines_of(host):
        plan = planner.plan(host, machine)
        try:
            _check_source(plan, host, market)
            check_plan(plan)
        except (UserError, LimitReached, ProviderError) as error:
            problems.append(error)
        else:
            offer = offer_for(host, machine, market.offers) if host.paid else None
            made.append((offer is not None and not offer.available, most_usd(plan) or 0.0, len(made), plan))
    show_problems(market)
    if not made:
        raise problems[0]
    plans = [plan for *_, plan in sorted(made, key=lambda each: each[:3])]
    return [replace(plan, data=source.moved(host, plan)) for plan in plans]


def _check_source(plan: Plan, host: HostSpec, market: Market) -> None:
    """Raises ProviderError with the reason where the provider refuses, or names no price for a machine: none is bought
    at a bundled price in its stead. Silence refuses nothing: a purchase asks again, and waits with --wait."""
    if not host.paid:
        return
    for refusal in market.refusals.values():
        raise refusal
    sold = machine_type(plan.machine).node.name
    listed = any(offer.machine == sold and offer.quoted_at is not None for offer in market.offers)
    reasons = [*market.problems.values(), *market.warnings]
    if reasons and (plan.price_per_hour_usd is None or not (listed or market.problems)):
        where = f"plan: {plan.recipe} on {host.name}"
        raise ProviderError(f"{where}: no price for {plan.machine}: {'; '.join(reasons)}", "gptctl offers asks again")


def _measured(rate: RateRecord) -> MeasuredRate:
    """A rate of an earlier run, without the run."""
    return MeasuredRate(
        rate.machine, rate.tokens_per_second, rate.flop_per_token, rate.measured_at, rate.compiled, rate.precision
    )


def show_plan(plan: Plan) -> None:
    """Prints the plan of one run: what will happen, for how long and how much, and where the figures come from."""
    sequences = f"{plan.micro_batch} x {plan.accumulation} x {plan.ranks} = {plan.global_batch} sequences"
    epochs = f", {plan.epochs:.2f} epochs" if plan.epochs else ""
    stages = ", ".join(
        f"{name} {hours(value)}" for name, value in vars(plan.hours).items() if name != "total" and value
    )
    lines = [
        ("plan", f"{plan.recipe} on {plan.host or DASH} ({plan.machine})"),
        ("model", f"{count(plan.parameters)} parameters"),
        ("batch", f"micro-batch x accumulation x ranks: {sequences}"),
        ("steps", f"{steps_words(plan)}, {count(plan.tokens_left)} tokens{epochs}"),
        ("speed", f"{count(plan.tokens_per_second)} tok/s ({plan.rate_source}, +-{plan.uncertainty:.0%})"),
        ("time", f"{hours(plan.hours.total)} ({stages})"),
        ("cost", f"{_cost_words(plan)} at {dollars(plan.price_per_hour_usd)}/h ({plan.price_source})"),
        *([("data", data_words(plan.data))] if plan.data else []),
        *_demands(plan),
        ("ending", plan.ending),
    ]
    for name, text in lines:
        screen.talk_fact(name, text)
    for warning in plan.warnings:
        screen.talk_fact("warning", warning, style="yellow")


def _demands(plan: Plan) -> list[tuple[str, str]]:
    """What is installed there, how much main memory the run takes, and what it costs to bring the end of it here."""
    said = [("install", install_words(plan.install))] if plan.install else []
    if plan.fetch is not None:
        said.append(("fetch", fetch_cost.words(plan.fetch, plan.hours.fetch, plan.price_per_hour_usd)))
    return [*said, ("memory", memory_words(plan.memory, plan.ranks))] if plan.memory else said


def _cost_words(plan: Plan) -> str:
    """`$63.94 ($50.20 to $77.68)`, or the figure alone."""
    estimate, figure = plan.cost_usd.estimate, dollars(plan.cost_usd.total)
    between = dollars_between(estimate.low, estimate.cost_usd, estimate.high) if estimate else figure
    return figure if between == figure else f"{figure} ({between})"


def steps_words(plan: Plan) -> str:
    """`820 steps`; of a run that resumes from a checkpoint, how many are left."""
    if not plan.from_step:
        return f"{plan.steps:,} steps"
    return f"{plan.steps_left:,} of {plan.steps:,} steps (from step {plan.from_step:,})"


def show_alternatives(plans: Sequence[Plan]) -> None:
    """Prints the machine types to rent if the planned one is not available."""
    for plan in plans:
        total, price = dollars(plan.cost_usd.total), dollars(plan.price_per_hour_usd)
        screen.talk(f"otherwise {plan.machine}: {total} in {hours(plan.hours.total)} at {price}/h")


def _show_table(plans: Sequence[Plan], made: int) -> None:
    """`made`: how many plans there are, shown or not."""
    remarks = ["; ".join([*([each.why] if not each.fits else []), each.rate_source]) for each in plans]
    prices = ["; ".join(_price_words(each)) for each in plans]
    numbered = footnotes([*remarks, *prices])
    rows = [
        [
            each.host or DASH,
            each.machine,
            f"{each.micro_batch} x {each.accumulation} x {each.ranks}",
            f"{each.steps_left:,}",
            count(each.tokens_per_second),
            hours(each.hours.total),
            dollars(each.cost_usd.total),
            dollars(each.price_per_hour_usd),
            "".join(f"[{numbered[text]}]" for text in notes if text),
            ", ".join(marks) if each.fits else "does not fit",
        ]
        for each, marks, notes in zip(plans, mark(plans), zip(remarks, prices, strict=True), strict=True)
    ]
    screen.show_table(COLUMNS, rows)
    screen.show_footnotes(numbered)
    nowhere = " Rows without a host are machine types at their last known price."
    screen.talk(f"batch: micro-batch x accumulation x ranks.{'' if all(each.host for each in plans) else nowhere}")
    if hidden := made - len(plans):
        screen.talk(f"{hidden} more are hidden; --all shows them")


def _price_words(plan: Plan) -> list[str]:
    """On a paid host, where the price comes from and since when; and warnings."""
    return [f"price: {plan.price_source}", *plan.warnings] if plan.paid and plan.host else []

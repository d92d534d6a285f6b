"""Recipe x machine x offer -> plan. Pure: no calls, no clock; the caller brings offers, rates and sizes.

Example::

    plan = make_plan(load_recipe("quickstart"), None, machine_type("2xCPU"), None, now=time.time())
    plan.steps, plan.hours.total, plan.rate_source
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, Recipe
from orchestrator.core.errors import UserError
from orchestrator.core.machines import MachineType, assumed
from orchestrator.core.planning import demands
from orchestrator.core.planning.batch import Batch, choose_batch, ddp_and_fsdp, split
from orchestrator.core.planning.fetch_cost import NO_RATES, Rates, billed_mb_per_s, far_words, fetch_of
from orchestrator.core.planning.forecast import disk_trouble, ending, hours_by_stage, kept_bytes, spread
from orchestrator.core.planning.limits import ceiling_usd, combine
from orchestrator.core.planning.many_machines.lost_nodes import cannot_continue
from orchestrator.core.planning.plan import Hours, Plan, PlanLimits
from orchestrator.core.planning.price import Quote, quote
from orchestrator.core.planning.rates import MeasuredRate, Rate, expected_rate
from orchestrator.core.planning.spot_notice import in_time
from orchestrator.core.ports import Guard, Offer
from trainer.arithmetic import chinchilla_tokens, parameter_count


def amended(plan: Plan, micro_batch: int, tokens_per_second: float | None = None) -> Plan:
    """The plan with another micro-batch and the same global batch, as the probe found it on the machine itself.

    Raises UserError when it does not divide. The hours of training follow the new rate where one is given.
    """
    batch = split(plan.global_batch, plan.ranks, micro_batch)
    if not batch.fits:
        raise UserError(f"plan: {batch.why}")
    changed = dataclasses.replace(plan, micro_batch=micro_batch, accumulation=batch.accumulation, fits=True, why="")
    if not tokens_per_second:
        return changed
    rate = Rate(tokens_per_second, "measured by the probe", 0.1)
    hours = plan.hours.with_train(plan.tokens_left / tokens_per_second / 3600)
    return dataclasses.replace(
        changed,
        tokens_per_second=tokens_per_second,
        rate_source=rate.source,
        uncertainty=rate.uncertainty,
        hours=hours,
        cost_usd=spread(hours, plan.price_per_hour_usd, rate.uncertainty),
    )


def priced(plan: Plan, price_per_hour_usd: float) -> Plan:
    """The plan at the price that the provider lists for the machine it sold. Its ceiling stays what was agreed to."""
    return dataclasses.replace(
        plan,
        price_per_hour_usd=price_per_hour_usd,
        price_source="as listed for the machine that was bought",
        cost_usd=spread(plan.hours, price_per_hour_usd, plan.uncertainty),
    )


def over_link(
    recipe: Recipe, plan: Plan, machine: MachineType, measured: Sequence[MeasuredRate], mb_per_s: float
) -> Plan:
    """The plan over nodes whose slowest link was measured, in MB/s, in place of the one that it assumed. A rate that
    was measured on such nodes has their link in it, and processors wait for none here: then nothing changes."""
    batch = Batch(plan.ranks, plan.micro_batch, plan.accumulation)
    before = expected_rate(recipe, machine, batch, measured)
    rate = expected_rate(recipe, machine, batch, measured, mb_per_s * 8 / 1000)
    if rate.tokens_per_second == before.tokens_per_second:
        return plan
    hours = plan.hours.with_train(plan.tokens_left / rate.tokens_per_second / 3600)
    others = [said for said in plan.warnings if not said.startswith(f"{machine.nodes} x {machine.node.name} over ")]
    return dataclasses.replace(
        plan,
        tokens_per_second=rate.tokens_per_second,
        rate_source=f"{rate.source} over {mb_per_s:.0f} MB/s as measured",
        uncertainty=rate.uncertainty,
        hours=hours,
        cost_usd=spread(hours, plan.price_per_hour_usd, rate.uncertainty),
        warnings=tuple(filter(None, [*others, rate.remark])),
    )


def make_plan(
    recipe: Recipe, host: HostSpec | None, machine: MachineType, offer: Offer | None, *,
    rates: Sequence[MeasuredRate] = (), dataset_tokens: int | None = None, now: float, limits: Limits | None = None,
    from_step: int = 0, fetch_rates: Rates = NO_RATES,
) -> Plan:  # fmt: skip
    """Works out the plan. `host` None: the machine type alone, as a rented machine.

    dataset_tokens: length of the training data, None when unknown. limits: those typed as flags; the tightest of all
    counts. from_step: of the checkpoint to resume from. fetch_rates: of earlier fetches. What does not fit or divide is
    refused by limits.check_plan. Raises UserError for unknown tokens, too many epochs, or no step left.
    """
    tokens_wanted, epochs = _tokens(recipe, dataset_tokens)
    steps = recipe.steps_for(tokens_wanted)
    tokens = recipe.course(steps).tokens(steps)
    batch = choose_batch(recipe, machine)
    rate = expected_rate(recipe, machine, batch, rates, host.link_gbit_per_s if host else None)
    price = quote(host, machine, offer)
    fetch = fetch_of(host, offer.region if offer else "", kept_bytes(recipe, steps, from_step), fetch_rates)
    spans = {"steps": steps, "tokens": tokens, "from_step": from_step}
    hours = hours_by_stage(recipe, host, machine, rate=rate, fetch_mb_per_s=billed_mb_per_s(host, fetch), **spans)
    cost = spread(hours, price.per_hour_usd, rate.uncertainty)
    too_large, tight = disk_trouble(recipe, offer, steps, min(tokens, dataset_tokens or tokens), from_step)
    unfit = batch.why or too_large or cannot_continue(recipe, host, machine)
    tightest = combine(recipe, machine, host, limits)
    ceiling = ceiling_usd(tightest, price, cost.total)
    said = [*_warnings(recipe, machine, price, epochs=epochs, now=now), _no_limit(price, tightest, ceiling), tight]
    said += [rate.remark, _notice(recipe, host, steps - from_step, hours), far_words(host, fetch, hours, price)]
    return Plan(
        recipe=recipe.name,
        host=host.name if host else None,
        machine=machine.name,
        ranks=batch.ranks,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        global_batch=recipe.train.global_batch,
        steps=steps,
        tokens=tokens,
        epochs=epochs,
        parameters=parameter_count(recipe.model.config()),
        tokens_per_second=rate.tokens_per_second,
        rate_source=rate.source,
        uncertainty=rate.uncertainty,
        fits=batch.fits and not unfit,
        why=unfit,
        hours=hours,
        cost_usd=cost,
        price_per_hour_usd=price.per_hour_usd,
        price_source=price.source,
        guard=Guard(host.guard if host and host.paid else "none"),
        ending=ending(host, price, tightest, ceiling, hours),
        paid=price.paid,
        limits=PlanLimits(**tightest.model_dump()),
        ceiling_usd=ceiling,
        warnings=tuple(filter(None, said)),
        from_step=from_step,
        tokens_before=recipe.course(steps).tokens(from_step) if recipe.stages else None,
        install=demands.install(host, machine),
        memory=demands.memory(recipe, machine, batch),
        fetch=fetch,
    )


def _tokens(recipe: Recipe, dataset_tokens: int | None) -> tuple[int, float | None]:
    """Tokens to train on, before rounding up, and how many epochs of the data that is (None when unknown)."""
    if dataset_tokens is not None and dataset_tokens <= recipe.model.context_length:
        raise UserError(
            f"data: {dataset_tokens} tokens are less than one sequence of {recipe.model.context_length}",
            hint="check data.source, or the text that [data.prepare] reads",
        )
    window = recipe.data.tokens
    if dataset_tokens is not None:
        left = max(dataset_tokens - recipe.data.start_token, 0)
        window = left if window is None else min(window, left)
    wanted = recipe.train.tokens
    if wanted == "all":
        if not window:
            raise UserError('train.tokens: "all" needs data whose length is known', hint="set data.tokens, or a number")
        return window, 1.0
    tokens = chinchilla_tokens(recipe.model.config()) if isinstance(wanted, str) else wanted
    epochs = tokens / window if window else None
    most = recipe.train.max_epochs
    if epochs is not None and most is not None and epochs > most:
        raise UserError(
            f"train.max_epochs: {tokens:,} tokens are {epochs:.2f} epochs of the data, more than {most:g}",
            hint=f"set train.tokens to at most {int((window or 0) * most)}, or raise train.max_epochs",
        )
    return tokens, epochs


def _warnings(recipe: Recipe, machine: MachineType, price: Quote, *, epochs: float | None, now: float) -> list[str]:
    said = []
    wanted = recipe.data.prepare
    far = [each for each in wanted.sources if "://" in each] if wanted is not None else []
    if far:
        said.append(f"{' and '.join(far)}: downloaded and prepared on this computer, before a machine is rented")
    if epochs is not None and epochs > 1:
        said.append(f"{epochs:.2f} epochs: the data is seen again, reshuffled")
    if machine.gpu and machine.cuda and recipe.train.precision == "bf16" and not machine.gpu.has_bf16:
        said.append(f"{machine.gpu.name} has no bf16: fp16 with a gradient scaler instead")
    if compared := ddp_and_fsdp(recipe, machine):
        said.append(compared)
    age_days = (now - price.dated_at) / 86_400 if price.dated_at is not None else 0.0
    if age_days > assumed().price_stale_days:
        said.append(f"the price is {age_days:.0f} days old; the one quoted at launch counts")
    return said


def _no_limit(price: Quote, limits: Limits, ceiling: float | None) -> str:
    if not price.paid or limits.max_cost_usd is not None or ceiling is None:
        return ""
    return f"no limit given: ends at ${ceiling:.2f}, twice the estimate and at least one hour"


def _notice(recipe: Recipe, host: HostSpec | None, steps: int, hours: Hours) -> str:
    return in_time(recipe, host, steps / (3600 * hours.train)) if host and host.spot else ""

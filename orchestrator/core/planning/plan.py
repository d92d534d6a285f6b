"""The plan: recipe x machine x offer as steps, hours and dollars. What `plan` prints is what `run` executes.

Pure: it asks nobody and reads no clock. Limits are compared in core/limits.py.

Example::

    plan = make_plan(load_recipe("quickstart"), None, machine_type("2xCPU"), None, now=time.time())
    plan.steps, plan.hours["total"], plan.rate_source
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, Recipe
from orchestrator.core.errors import UserError
from orchestrator.core.machines import MachineType, assumed, machine_type
from orchestrator.core.planning.batch import choose_batch, split
from orchestrator.core.planning.forecast import Quote, disk_trouble, ending, hours_by_stage, quote, spread
from orchestrator.core.planning.limits import ceiling_usd, combine
from orchestrator.core.planning.rates import MeasuredRate, Rate, expected_rate
from orchestrator.core.planning.spot_notice import in_time
from orchestrator.core.ports import Offer
from trainer.arithmetic import chinchilla_tokens, parameter_count, steps_for
from trainer.contract import DataConfig, RetentionConfig, RunConfig, TrainConfig

LONGEST_WAIT_H = 60 * 24
"""A plan of more than two months is no alternative to the others, however cheap."""


@dataclass(frozen=True)
class Plan:
    """One recipe on one machine. Tokens per second, hours and dollars are estimates; `rate_source` says whose."""

    recipe: str
    host: str | None
    machine: str
    ranks: int
    micro_batch: int
    accumulation: int
    global_batch: int
    steps: int
    tokens: int
    epochs: float | None
    """None when nobody knows how many tokens the data holds."""
    parameters: int
    tokens_per_second: float
    rate_source: str
    uncertainty: float
    """The rate is thought to lie within +- this fraction."""
    fits: bool
    why: str
    """Why it does not fit; empty when it does."""
    hours: Mapping[str, float]
    """boot, provision, data, train, fetch, total."""
    cost_usd: Mapping[str, float | None]
    """The same keys, and total_low and total_high; None where no price is known."""
    price_per_hour_usd: float | None
    price_source: str
    guard: Mapping[str, Any]
    """kind, armed, ends_at."""
    ending: str
    """What happens at the end with the laptop away, in one line."""
    paid: bool
    limits: Mapping[str, float | None]
    ceiling_usd: float | None
    """What the run may cost at most; None on a machine nobody bills."""
    warnings: tuple[str, ...] = ()
    data: Mapping[str, Any] | None = None
    """What goes to the machine: source, way (pulled, sent, in place), needed_bytes, pulled_bytes, dataset_bytes,
    verified_by; figures null where `unknown` says why. None where nobody looked."""

    @property
    def digest(self) -> str:
        """sha256 over all of it, hex."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """JSON-able, with the digest."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings), "digest": self.digest}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Plan:
        """The plan to_json() came from. Keys of a later version are left out."""
        names = {field.name for field in dataclasses.fields(Plan)}
        known = {name: item for name, item in value.items() if name in names}
        return Plan(**{**known, "warnings": tuple(known.get("warnings", ()))})

    def amended(self, micro_batch: int, tokens_per_second: float | None = None) -> Plan:
        """The plan with another micro-batch and the same global batch, as the probe found it on the machine itself.

        Raises UserError when it does not divide. The hours of training follow the new rate where one is given.
        """
        batch = split(self.global_batch, self.ranks, micro_batch)
        if not batch.fits:
            raise UserError(f"plan: {batch.why}")
        changed = dataclasses.replace(self, micro_batch=micro_batch, accumulation=batch.accumulation, fits=True, why="")
        if not tokens_per_second:
            return changed
        rate = Rate(tokens_per_second, "measured by the probe", 0.1)
        hours = _with_total({**self.hours, "train": self.tokens / tokens_per_second / 3600})
        return dataclasses.replace(
            changed,
            tokens_per_second=tokens_per_second,
            rate_source=rate.source,
            uncertainty=rate.uncertainty,
            hours=hours,
            cost_usd=spread(hours, self.price_per_hour_usd, rate.uncertainty),
        )


def make_plan(
    recipe: Recipe,
    host: HostSpec | None,
    machine: MachineType,
    offer: Offer | None,
    *,
    rates: Sequence[MeasuredRate] = (),
    dataset_tokens: int | None = None,
    now: float,
    limits: Limits | None = None,
) -> Plan:
    """Works out the plan. `host` None: the machine type alone, as somebody would rent it.

    dataset_tokens: length of the training data, None when unknown. limits: those typed as flags; the tightest of all
    counts. A batch that does not fit or divide is no error here (`fits`, `why`): limits.check_plan refuses it.
    Raises UserError when the number of tokens cannot be known, or more epochs are needed than max_epochs allows.
    """
    tokens_wanted, epochs = _tokens(recipe, dataset_tokens)
    steps = steps_for(tokens_wanted, recipe.train.global_batch, recipe.model.context_length)
    tokens = steps * recipe.train.global_batch * recipe.model.context_length
    batch = choose_batch(recipe, machine)
    rate = expected_rate(recipe, machine, batch, rates)
    price = quote(host, machine, offer)
    hours = _with_total(hours_by_stage(recipe, host, machine, steps=steps, tokens=tokens, rate=rate))
    cost = spread(hours, price.per_hour_usd, rate.uncertainty)
    too_large, tight = disk_trouble(recipe, offer, steps, min(tokens, dataset_tokens or tokens))
    tightest = combine(recipe, machine, host, limits)
    ceiling = ceiling_usd(tightest, price, cost["total"])
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
        fits=batch.fits and not too_large,
        why=batch.why or too_large,
        hours=hours,
        cost_usd=cost,
        price_per_hour_usd=price.per_hour_usd,
        price_source=price.source,
        guard={"kind": host.guard if host and host.paid else "none", "armed": False, "ends_at": None},
        ending=ending(host, price, tightest, ceiling, hours),
        paid=price.paid,
        limits=tightest.model_dump(),
        ceiling_usd=ceiling,
        warnings=(
            *_warnings(recipe, machine, price, epochs=epochs, now=now),
            *filter(None, (_no_limit(price, tightest, ceiling), tight, _notice(recipe, host, steps, hours))),
        ),
    )


def train_config(
    recipe: Recipe,
    plan: Plan,
    *,
    train_files: Sequence[str],
    validation_files: Sequence[str] = (),
    validation_start_token: int = 0,
    validation_tokens: int = 0,
    window: tuple[int, int | None] | None = None,
    resume_from: str | None = None,
) -> RunConfig:
    """config.json of this run: recipe and plan, with the files as they lie on the machine. The same on every call.

    window: first token and length of the training window in these files, where they are cut from the recipe's.
    """
    machine, train = machine_type(plan.machine), recipe.train
    same = {field.name for field in dataclasses.fields(TrainConfig)} & set(type(train).model_fields)
    values = {name: getattr(train, name) for name in sorted(same)}
    data = DataConfig(
        train_files=tuple(train_files),
        validation_files=tuple(validation_files),
        start_token=window[0] if window else recipe.data.start_token,
        tokens=window[1] if window else recipe.data.tokens,
        order=recipe.data.order,
        validation_start_token=validation_start_token,
        validation_tokens=validation_tokens,
        tokenizer=recipe.data.decoder,
    )
    return RunConfig(
        model=recipe.model.config(),
        data=data,
        # A grad_clip of 0 is how a recipe switches off what the one it extends had switched on.
        train=TrainConfig(
            **{**values, "steps": plan.steps, "micro_batch": plan.micro_batch, "grad_clip": train.grad_clip or None}
        ),
        retention=RetentionConfig(keep_last=train.keep_last, keep_every=train.keep_every),
        resume_from=resume_from,
        peak_flops_per_gpu=machine.peak_flops_per_gpu(train.precision, train.tf32),
        device="cuda" if machine.cuda else "cpu",
        prompts=recipe.eval.prompts,
        slices=recipe.eval.slices,
    )


def mark(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """For each plan, in order: which of `cheapest` and `fastest` it is, of those that fit and end in time."""
    able = [plan for plan in plans if plan.fits and plan.hours["total"] <= LONGEST_WAIT_H]
    priced = [total for plan in able if (total := plan.cost_usd["total"]) is not None]
    least_usd, least_h = min(priced, default=None), min((plan.hours["total"] for plan in able), default=None)
    return [
        tuple(
            word
            for word, value, best in (
                ("cheapest", plan.cost_usd["total"], least_usd),
                ("fastest", plan.hours["total"], least_h),
            )
            if plan in able and value is not None and value == best
        )
        for plan in plans
    ]


def in_order(plans: Sequence[Plan]) -> list[Plan]:
    """Cheapest first, those without a price after them, those that do not fit last."""
    return sorted(plans, key=lambda plan: (not plan.fits, plan.cost_usd["total"] is None, plan.cost_usd["total"] or 0))


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


def _with_total(hours: Mapping[str, float]) -> dict[str, float]:
    parts = {stage: value for stage, value in hours.items() if stage != "total"}
    return {**parts, "total": sum(parts.values())}


def _warnings(recipe: Recipe, machine: MachineType, price: Quote, *, epochs: float | None, now: float) -> list[str]:
    said = []
    wanted = recipe.data.prepare
    if wanted is not None and "://" in wanted.source:
        said.append(f"{wanted.source} is downloaded and prepared on this computer, before a machine is rented")
    if epochs is not None and epochs > 1:
        said.append(f"{epochs:.2f} epochs: the data is seen again, reshuffled")
    if machine.gpu and machine.cuda and recipe.train.precision == "bf16" and not machine.gpu.has_bf16:
        said.append(f"{machine.gpu.name} has no bf16: fp16 with a gradient scaler instead")
    age_days = (now - price.dated_at) / 86_400 if price.dated_at is not None else 0.0
    if age_days > assumed()["price_stale_days"]:
        said.append(f"the price is {age_days:.0f} days old; the one quoted at launch counts")
    return said


def _no_limit(price: Quote, limits: Limits, ceiling: float | None) -> str:
    if not price.paid or limits.max_cost_usd is not None or ceiling is None:
        return ""
    return f"no limit given: ends at ${ceiling:.2f}, twice the estimate and at least one hour"


def _notice(recipe: Recipe, host: HostSpec | None, steps: int, hours: Mapping[str, float]) -> str:
    return in_time(recipe, host, steps / (3600 * hours["train"])) if host and host.spot else ""

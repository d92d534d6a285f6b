"""How fast a recipe will train on a machine, and who says so.

Best first: measured by us on such a machine, published by others, computed from the card's peak with an assumed
utilisation, guessed for CPUs. It must not measure anything.

Example: `expected_rate(recipe, machine_type("8xA100-40GB"), batch, measured=()).source`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.machines import MachineType, assumed, machine_type, published_rates
from orchestrator.core.planning.batch import Batch
from trainer.arithmetic import flop_per_token

COMPARABLE_FLOP = 3.0
"""A rate is carried over to another model, by FLOP per token, only when neither is more than this times the other."""


@dataclass(frozen=True)
class MeasuredRate:
    """Tokens per second over the whole machine, as one of our own runs reached them at `measured_at` (UTC epoch s)."""

    machine: str
    tokens_per_second: float
    flop_per_token: float
    measured_at: float
    compiled: bool
    precision: str


@dataclass(frozen=True)
class Rate:
    """An expected speed. The true one is expected within +- `uncertainty` of it, as a fraction."""

    tokens_per_second: float
    source: str
    uncertainty: float


def expected_rate(recipe: Recipe, machine: MachineType, batch: Batch, measured: Sequence[MeasuredRate]) -> Rate:
    """The best-founded rate there is, slowed down to what launching kernels allows."""
    rate = (
        _measured(recipe, machine, measured)
        or _published(recipe, machine, batch.micro_batch)
        or (_computed(recipe, machine) if machine.cuda else _guessed_for_cpu(recipe, machine))
    )
    floor_s = assumed().least_layer_step_s * recipe.model.n_layer * batch.accumulation
    most = recipe.train.global_batch * recipe.model.context_length / floor_s
    if rate.tokens_per_second <= most:
        return rate
    return Rate(most, "guess: so small a model is held up by launching kernels", 0.6)


def is_compiled(recipe: Recipe, machine: MachineType) -> bool:
    """Whether this recipe runs under torch.compile on this machine: by default on CUDA, not on CPU."""
    return machine.cuda if recipe.train.compile is None else recipe.train.compile


def _measured(recipe: Recipe, machine: MachineType, measured: Sequence[MeasuredRate]) -> Rate | None:
    """The newest rate of the same machine type, else of another number of the same card, scaled."""
    fitting = [
        rate
        for rate in measured
        if (rate.machine == machine.name or (machine.cuda and machine_type(rate.machine).gpu == machine.gpu))
        and rate.compiled == is_compiled(recipe, machine)
        and rate.precision == recipe.train.precision
        and _comparable(recipe, rate.flop_per_token)
    ]
    if not fitting:
        return None
    newest = max(fitting, key=lambda rate: (rate.machine == machine.name, rate.measured_at))
    scaled = newest.tokens_per_second * newest.flop_per_token / flop_per_token(recipe.model.config())
    source = f"measured by us on {datetime.fromtimestamp(newest.measured_at, UTC).date()}"
    if newest.machine == machine.name:
        return Rate(scaled, source, 0.1)
    cards = machine.count / machine_type(newest.machine).count
    scaled *= cards * (assumed().many_cards if cards > 1 else 1.0)
    return Rate(scaled, f"{source} with {newest.machine}, scaled", 0.25)


def _published(recipe: Recipe, machine: MachineType, micro_batch: int) -> Rate | None:
    """Of several published figures the one with the same micro-batch, then the slowest: a plan had better be kept."""
    fitting = [
        rate
        for rate in published_rates()
        if rate.machine == machine.name
        and rate.compiled == is_compiled(recipe, machine)
        and recipe.train.precision != "fp32"
        and machine.cuda
        and _comparable(recipe, rate.flop_per_token)
    ]
    if not fitting:
        return None
    best = min(fitting, key=lambda rate: (rate.micro_batch != micro_batch, rate.tokens_per_second))
    scaled = best.tokens_per_second * best.flop_per_token / flop_per_token(recipe.model.config())
    return Rate(scaled, f"published by {best.by}", 0.25)


def _comparable(recipe: Recipe, other: float) -> bool:
    ours = flop_per_token(recipe.model.config())
    return max(ours, other) <= COMPARABLE_FLOP * min(ours, other)


def _computed(recipe: Recipe, machine: MachineType) -> Rate:
    peak = machine.peak_flops_per_gpu(recipe.train.precision, recipe.train.tf32)
    known = "" if peak else "assumed "
    peak = peak or assumed().unknown_card_tflops * 1e12
    mfu = _assumed_mfu(recipe, machine, peak)
    again = 0.75 if recipe.train.activation_checkpointing else 1.0  # one forward pass more: 3 of 4 parts count
    rate = peak * machine.count * mfu * again / flop_per_token(recipe.model.config())
    return Rate(rate, f"computed: {known}{peak / 1e12:g} TFLOP/s peak x assumed MFU {mfu:.0%}", 0.5)


def _assumed_mfu(recipe: Recipe, machine: MachineType, peak: float) -> float:
    if recipe.train.precision == "fp32" and not recipe.train.tf32:
        return assumed().mfu_fp32
    if is_compiled(recipe, machine):
        return assumed().mfu_compiled
    return next(float(mfu) for up_to_tflops, mfu in assumed().mfu_eager if peak <= up_to_tflops * 1e12)


def _guessed_for_cpu(recipe: Recipe, machine: MachineType) -> Rate:
    gflops = assumed().cpu_gflops_per_rank
    rate = gflops * 1e9 * machine.ranks / flop_per_token(recipe.model.config())
    return Rate(rate, f"guess: {gflops:g} GFLOP/s per CPU rank, assumed", 0.6)

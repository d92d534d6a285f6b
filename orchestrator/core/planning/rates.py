"""How fast a recipe will train on a machine, and who says so.

Best first: measured by us on such a machine, computed by the roofline from the card's peak, memory and links, guessed
for CPUs. What others published checks the roofline (docs/concepts/speed.md): it is a rate of their code. It must not
measure anything.

Example: `expected_rate(recipe, machine_type("8xA100-40GB"), batch, measured=()).source`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.machines import MachineType, assumed, machine_type
from orchestrator.core.planning.batch import Batch
from trainer.arithmetic import flop_per_token
from trainer.arithmetic.roofline import Card, Job, tokens_per_second

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
    """The best-founded rate there is."""
    known = _measured(recipe, machine, measured)
    if known is not None:
        return known
    return _computed(recipe, machine, batch) if machine.cuda else _guessed_for_cpu(recipe, machine)


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


def _comparable(recipe: Recipe, other: float) -> bool:
    ours = flop_per_token(recipe.model.config())
    return max(ours, other) <= COMPARABLE_FLOP * min(ours, other)


def _computed(recipe: Recipe, machine: MachineType, batch: Batch) -> Rate:
    card, known = _card(recipe, machine)
    train, compiled = recipe.train, is_compiled(recipe, machine)
    job = Job(
        ranks=batch.ranks,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        compiled=compiled,
        half=train.precision != "fp32",
        optimizer=train.optimizer,
        clips=bool(train.grad_clip),
        activation_checkpointing=train.activation_checkpointing,
    )
    rate = tokens_per_second(recipe.model.config(), job, card)
    peak = machine.peak_flops_per_gpu(train.precision, train.tf32) or card.peak_flops
    mfu = rate * flop_per_token(recipe.model.config()) / (peak * machine.count)
    how = f"computed, {'compiled' if compiled else 'uncompiled'}: MFU {mfu:.0%} of {peak / 1e12:g} TFLOP/s"
    return Rate(rate, how, 0.3) if known else Rate(rate, f"{how}, assumed", 0.5)


def _card(recipe: Recipe, machine: MachineType) -> tuple[Card, bool]:
    """The card in the run's number type, and whether it is known."""
    gpu, unknown = machine.gpu, assumed().unknown_card
    peak = machine.peak_flops_per_gpu(recipe.train.precision, recipe.train.tf32)
    if gpu is None or not peak:
        return Card(unknown.tflops * 1e12, unknown.memory_gb_per_s * 1e9, unknown.link_gb_per_s * 1e9), False
    # Products in fp32 without tensor cores are easy to fill.
    gemm = 0.8 if recipe.train.precision == "fp32" and not recipe.train.tf32 else gpu.gemm
    return Card(peak, gpu.memory_gb_per_s * 1e9, gpu.link_gb_per_s * 1e9, gemm, gpu.attention), True


def _guessed_for_cpu(recipe: Recipe, machine: MachineType) -> Rate:
    gflops = assumed().cpu_gflops_per_rank
    rate = gflops * 1e9 * machine.ranks / flop_per_token(recipe.model.config())
    return Rate(rate, f"guess: {gflops:g} GFLOP/s per CPU rank, assumed", 0.6)

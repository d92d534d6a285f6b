"""How fast a recipe will train on a machine, and who says so.

Best first: measured by us on such a machine; computed by the roofline from the card's peak, memory and links, in
proportion to what we measured there in another precision, or alone; guessed for CPUs. On the same card a slower
precision never predicts a higher rate. What others published checks the roofline (docs/concepts/speed.md): it is a rate
of their code. It must not measure anything.

Example: `expected_rate(recipe, machine_type("8xA100-40GB"), batch, measured=()).source`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.machines import MachineType, assumed, machine_type
from orchestrator.core.planning.batch import Batch, choose_batch, loss_chunks
from orchestrator.core.planning.many_machines import nodes
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
    """As number_type() has it: `bf16`, `fp16`, `tf32` or `fp32`."""


@dataclass(frozen=True)
class Rate:
    """An expected speed. The true one is expected within +- `uncertainty` of it, as a fraction."""

    tokens_per_second: float
    source: str
    uncertainty: float
    remark: str = ""
    """For the plan's reader."""


def expected_rate(
    recipe: Recipe,
    machine: MachineType,
    batch: Batch,
    measured: Sequence[MeasuredRate],
    link_gbit_per_s: float | None = None,
) -> Rate:
    """The best-founded rate there is. Of several nodes: that of one, times what the roofline makes of the others and
    the network between them, unless it was measured on such nodes."""
    if machine.nodes > 1 and machine.cuda and not any(rate.machine == machine.name for rate in measured):
        return _over_nodes(recipe, machine, batch, measured, link_gbit_per_s)
    fitting = _fitting(recipe, machine, measured)
    same = [rate for rate in fitting if rate.precision == number_type(recipe, machine)]
    if same:
        return _measured(recipe, machine, same)
    if not machine.cuda:
        return _guessed_for_cpu(recipe, machine)
    computed = _computed(recipe, machine, batch)
    return _in_proportion(recipe, machine, fitting, computed) if fitting else computed


def _over_nodes(
    recipe: Recipe, machine: MachineType, batch: Batch, measured: Sequence[MeasuredRate], link_gbit_per_s: float | None
) -> Rate:
    node, alone = machine.node, choose_batch(recipe, machine.node)
    one = expected_rate(recipe, node, alone, measured)
    model, (card, _) = recipe.model.config(), _card(recipe, machine)
    together = tokens_per_second(model, _job(recipe, machine, batch, link_gbit_per_s), card)
    apart = tokens_per_second(model, _job(recipe, node, alone), card)
    speedup = together / apart
    source = f"{one.source}, {machine.nodes} nodes computed"
    said = nodes.verdict(machine, speedup, link_gbit_per_s) if batch.fits else ""
    return Rate(one.tokens_per_second * speedup, source, max(one.uncertainty, 0.4), said)


def number_type(recipe: Recipe, machine: MachineType) -> str:
    """What products are computed in: the recipe's precision, or `tf32` where fp32 products run on tensor cores."""
    train, gpu = recipe.train, machine.gpu
    fast = train.precision == "fp32" and train.tf32 and machine.cuda and gpu is not None and gpu.has_tf32
    return "tf32" if fast else train.precision


def is_compiled(recipe: Recipe, machine: MachineType) -> bool:
    """Whether this recipe runs under torch.compile on this machine: by default on CUDA, not on CPU."""
    return machine.cuda if recipe.train.compile is None else recipe.train.compile


def _fitting(recipe: Recipe, machine: MachineType, measured: Sequence[MeasuredRate]) -> list[MeasuredRate]:
    """The rates on this card of a model of this size, in any precision."""
    return [
        rate
        for rate in measured
        if (rate.machine == machine.name or (machine.cuda and machine_type(rate.machine).gpu == machine.gpu))
        and rate.compiled == is_compiled(recipe, machine)
        and _comparable(recipe, rate.flop_per_token)
    ]


def _in_proportion(recipe: Recipe, machine: MachineType, fitting: Sequence[MeasuredRate], computed: Rate) -> Rate:
    """The computed rate times what the newest rate in another precision is of its own computed one."""
    other = max(fitting, key=lambda rate: (rate.machine == machine.name, rate.measured_at)).precision
    changes = {"precision": "fp32" if other == "tf32" else other, "tf32": other == "tf32" or recipe.train.tf32}
    if other == "fp32":
        changes["tf32"] = False
    there = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
    known = _measured(recipe, machine, [rate for rate in fitting if rate.precision == other])
    share = known.tokens_per_second / _computed(there, machine, choose_batch(there, machine)).tokens_per_second
    return Rate(computed.tokens_per_second * share, f"computed from {other}, {known.source}", 0.3)


def _measured(recipe: Recipe, machine: MachineType, fitting: Sequence[MeasuredRate]) -> Rate:
    """The newest rate of the same machine type, else of another number of the same card, scaled."""
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
    """By the roofline; never below fp32 there, which a little memory may leave a larger micro-batch."""
    rate = _by_roofline(recipe, machine, batch)
    if recipe.train.precision == "fp32":
        return rate
    slower = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "fp32"})})
    there = choose_batch(slower, machine)
    floor = _by_roofline(slower, machine, there).tokens_per_second if there.fits else 0.0
    return replace(rate, tokens_per_second=max(rate.tokens_per_second, floor))


def _by_roofline(recipe: Recipe, machine: MachineType, batch: Batch) -> Rate:
    card, known = _card(recipe, machine)
    train, compiled = recipe.train, is_compiled(recipe, machine)
    rate = tokens_per_second(recipe.model.config(), _job(recipe, machine, batch), card)
    peak = machine.peak_flops_per_gpu(train.precision, train.tf32) or card.peak_flops
    mfu = rate * flop_per_token(recipe.model.config()) / (peak * machine.count)
    how = f"computed, {'compiled' if compiled else 'uncompiled'}: MFU {_share(mfu)} of {peak / 1e12:g} TFLOP/s"
    return Rate(rate, how, 0.3) if known else Rate(rate, f"{how}, assumed", 0.5)


def _job(recipe: Recipe, machine: MachineType, batch: Batch, link_gbit_per_s: float | None = None) -> Job:
    train, network = recipe.train, nodes.network(link_gbit_per_s)
    return Job(
        ranks=batch.ranks,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        compiled=is_compiled(recipe, machine),
        half=train.precision != "fp32",
        optimizer=train.optimizer,
        clips=bool(train.grad_clip),
        activation_checkpointing=train.activation_checkpointing,
        sharded=train.parallel == "fsdp",
        zero=train.zero_stage > 0 and batch.ranks > 1,
        reduce_bytes=2 if train.reduce_dtype == "bf16" else 4,
        loss_chunks=loss_chunks(recipe, machine, batch),
        nodes=machine.nodes,
        network_bytes_per_s=network.bytes_per_s,
        network_latency_s=network.latency_s,
    )


def _card(recipe: Recipe, machine: MachineType) -> tuple[Card, bool]:
    """The card in the run's number type, and whether it is known."""
    gpu, unknown = machine.gpu, assumed().unknown_card
    peak = machine.peak_flops_per_gpu(recipe.train.precision, recipe.train.tf32)
    if gpu is None or not peak:
        return Card(unknown.tflops * 1e12, unknown.memory_gb_per_s * 1e9, unknown.link_gb_per_s * 1e9), False
    gemm = gpu.gemm_share(recipe.train.precision, recipe.train.tf32)
    return Card(peak, gpu.memory_gb_per_s * 1e9, gpu.link_gb_per_s * 1e9, gemm, gpu.attention), True


def _guessed_for_cpu(recipe: Recipe, machine: MachineType) -> Rate:
    gflops = assumed().cpu_gflops_per_rank
    rate = gflops * 1e9 * machine.ranks / flop_per_token(recipe.model.config())
    return Rate(rate, f"guess: {gflops:g} GFLOP/s per CPU rank, assumed", 0.6)


def _share(mfu: float) -> str:
    """A small model on a large GPU uses little of it, which is not nothing."""
    return f"{mfu:.0%}" if mfu >= 0.01 else "below 1%"

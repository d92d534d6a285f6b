"""How long a training step of ours takes on a card, part by part: a prediction from its peak, its memory and its links.

Each part takes its floating-point operations at the share of the peak that such kernels reach, or its bytes at the
memory's rate; the parts do not overlap, but for the all-reduce with the backward pass. Formulas: products and attention
as in PaLM's appendix B with the causal half counted once; traffic by counting what our kernels read and write. The
shares are fitted to published figures (docs/concepts/speed.md lists each with its ratio); the probe measures instead.

Example::

    card = Card(312e12, 1.555e12, 230e9, gemm=0.65, attention=0.42)
    step = step_seconds(ModelConfig(), Job(ranks=8, micro_batch=12, accumulation=1), card)
    step.total, step.parts["gemm"]
"""

from __future__ import annotations

import typing

from trainer.arithmetic import (
    LOSS_CHUNKS,
    block_matrices,
    loss_chunk_rows,
    matmul_parameters,
    padded_vocabulary,
    parameter_count,
    table_columns,
)
from trainer.contract import ModelConfig

MEMORY_SHARE = 0.85
"""Of the data sheet's bandwidth: what kernels that stream large tensors reach."""
TRAFFIC = {True: 150, False: 390}
"""Bytes per token, layer and unit of width beside the products and attention, forward and backward, compiled or eager:
norms, casts, residuals, GELU and their gradients. Compiled code fuses them."""
DROPOUT_TRAFFIC = 12
"""More of the same with dropout: masks, written and read."""
OPTION_TRAFFIC = {"qk_norm": 16, "rope": 16, "value_residual": 12}
"""More of the same: queries and keys, or values, read and written once more in both directions. Computed."""
LOSS_PASSES = {True: 4, False: 9}
"""How often the loss reads or writes the logits in half precision."""
ADAMW_BYTES = 28
"""Per parameter: weight, gradient and two moments read, the weight and the moments written."""
ACCUMULATE_BYTES = 12
"""Per parameter and further micro-batch: both gradients read, their sum written."""
NORM_BYTES = 4
"""Per parameter: the gradient read for its norm."""
MUON_CLIP_BYTES = 8
"""Per hidden parameter: Muon's gradients are read and scaled; fused AdamW scales within its step."""
ZERO_CLEAR_BYTES = 4
"""Per parameter: ZeRO's gradient buckets stay and are set to zero."""
NEWTON_SCHULZ_STEPS = 5
LAYER_S = {True: 0.0005, False: 0.001}
"""Launching one block's kernels, forward and backward: a card that is faster than that waits for the host."""
STEP_S = 0.002
"""The host's work once per step: the optimizer's launches, the next batch, the log."""
OVERLAP = 0.6
"""Of the last backward pass, what can hide an all-reduce; its first and last bucket cannot."""
LEAST_EXPOSED = 0.25


class Card(typing.NamedTuple):
    """One GPU. `peak_flops`: dense, in the run's number type; `link_bytes_per_s`: what an all-reduce moves per card;
    `gemm` and `attention`: shares of the peak that products and attention reach."""

    peak_flops: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    gemm: float = 0.65
    attention: float = 0.4


class Job(typing.NamedTuple):
    """One optimizer step, as the plan splits it."""

    ranks: int = 1
    micro_batch: int = 1
    accumulation: int = 1
    compiled: bool = True
    half: bool = True
    """bf16 or fp16; else fp32."""
    optimizer: str = "adamw"
    clips: bool = False
    activation_checkpointing: bool = False
    sharded: bool = False
    """FSDP: gathers and reduces in every micro-batch."""
    zero: bool = False
    """ZeRO-1: a rank steps its share of what AdamW trains, and gathers the rest."""
    reduce_bytes: int = 4
    """Of one gradient value on its way through the all-reduce."""
    loss_chunks: int = LOSS_CHUNKS
    nodes: int = 1
    """Machines that the ranks are spread over evenly."""
    network_bytes_per_s: float = 0.0
    """Of one node, each way, where there are several."""
    network_latency_s: float = 0.0


class StepSeconds(typing.NamedTuple):
    """Seconds of one optimizer step on the slowest part of the machine, and of its parts."""

    total: float
    parts: typing.Dict[str, float]


def step_seconds(model: ModelConfig, job: Job, card: Card) -> StepSeconds:
    """The predicted step. Parts: gemm, head, attention, traffic, loss, optimizer, all_reduce and host (waits only)."""
    memory = card.memory_bytes_per_s * MEMORY_SHARE
    once = _micro_batch(model, job, card, memory)
    parts = {name: seconds * job.accumulation for name, seconds in once.items()}
    parts["optimizer"] = _optimizer(model, job, card, memory)
    parts["all_reduce"] = _all_reduce(model, job, card, backward_s=sum(once.values()) * 2 / 3)
    busy = sum(parts.values())
    launches = LAYER_S[job.compiled] * model.n_layer * job.accumulation
    parts["host"] = max(0.0, launches - busy) + STEP_S
    return StepSeconds(max(busy, launches) + STEP_S, parts)


def _micro_batch(model: ModelConfig, job: Job, card: Card, memory: float) -> typing.Dict[str, float]:
    """Forward and backward of one micro-batch."""
    tokens = job.micro_batch * model.context_length
    width, layers, size = model.n_embd, model.n_layer, 2 if job.half else 4
    again = 4 / 3 if job.activation_checkpointing else 1.0
    rows = padded_vocabulary(model)
    columns = table_columns(model, "output")
    blocks = 6 * (matmul_parameters(model) - model.vocab_size * columns)
    # Causal: half of 4 T d forward, and 2.5 times that backward (Dao, arXiv 2307.08691).
    attention = 3.5 * 2 * layers * width * model.context_length
    options = sum(bytes_more for name, bytes_more in OPTION_TRAFFIC.items() if getattr(model, name))
    each = TRAFFIC[job.compiled] + (DROPOUT_TRAFFIC if model.dropout else 0) + options
    traffic = layers * width * each * size / 2
    chunks = -(-tokens // loss_chunk_rows(rows, tokens, job.loss_chunks))
    loss = tokens * rows * size * LOSS_PASSES[job.compiled] + chunks * rows * columns * (8 + 2 * size)
    return {
        "gemm": again * tokens * blocks / (card.peak_flops * card.gemm),
        "head": tokens * 6 * rows * columns / (card.peak_flops * card.gemm),
        "attention": again * tokens * attention / (card.peak_flops * card.attention) * (1.25 if model.dropout else 1),
        "traffic": again * tokens * traffic / memory,
        "loss": loss / memory,
    }


def _optimizer(model: ModelConfig, job: Job, card: Card, memory: float) -> float:
    parameters, hidden = parameter_count(model), _hidden(model, job)
    shares = job.ranks if job.zero else 1
    moved = (ADAMW_BYTES + NORM_BYTES) * (hidden + (parameters - hidden) / shares)
    moved += parameters * (ACCUMULATE_BYTES * (job.accumulation - 1) + (ZERO_CLEAR_BYTES if shares > 1 else 0))
    seconds = (moved + (MUON_CLIP_BYTES * hidden if job.clips else 0)) / memory
    if job.optimizer != "muon":
        return seconds
    width = model.n_embd  # per step of Newton-Schulz 4 n n m + 2 n n n for a matrix of n x m (arXiv 2502.16982)
    long_sides = width * (3 + 1 + 4 + 4)
    flops = NEWTON_SCHULZ_STEPS * (4 * width * width * long_sides + 4 * 2 * width**3) * model.n_layer
    # Each rank makes its share orthogonal, and all gather the results in bf16.
    gathered = 2 * 12 * width**2 * model.n_layer * (job.ranks - 1) / job.ranks
    return seconds + flops / job.ranks / (card.peak_flops * card.gemm) + gathered / card.link_bytes_per_s


def _all_reduce(model: ModelConfig, job: Job, card: Card, backward_s: float) -> float:
    """What the all-reduce of fp32 gradients adds beyond what the last backward pass hides. FSDP moves as much in every
    micro-batch: weights in half precision gathered for each direction, gradients reduced in fp32; all passes hide it.
    """
    if job.ranks == 1:
        return 0.0
    if job.sharded:
        once = _ring_s(parameter_count(model) * (2 + (2 if job.half else 4)), job, card)
        return job.accumulation * max(LEAST_EXPOSED * once, once - OVERLAP * 1.5 * backward_s)
    parameters = parameter_count(model)
    whole = _ring_s(job.reduce_bytes * parameters, job, card)
    gathered = 0.0
    if job.zero:  # half a ring reduces and scatters; the other half, of fp32 weights, waits for the optimizer
        shared = parameters - _hidden(model, job)
        whole -= _ring_s(job.reduce_bytes * shared, job, card) / 2
        gathered = _ring_s(4 * shared, job, card) / 2
    return max(LEAST_EXPOSED * whole, whole - OVERLAP * backward_s) + gathered


def _hidden(model: ModelConfig, job: Job) -> int:
    """Parameters that Muon trains."""
    return model.n_layer * block_matrices(model) if job.optimizer == "muon" else 0


def _ring_s(size_bytes: float, job: Job, card: Card) -> float:
    """An all-reduce: a ring inside each node, and one between nodes, over whose network each sends all of it twice."""
    here = job.ranks // job.nodes
    seconds = 2 * size_bytes * (here - 1) / here / card.link_bytes_per_s
    if job.nodes == 1:
        return seconds
    hops = 2 * (job.nodes - 1)
    return seconds + hops / job.nodes * size_bytes / job.network_bytes_per_s + hops * job.network_latency_s


def tokens_per_second(model: ModelConfig, job: Job, card: Card) -> float:
    """Of the whole machine."""
    tokens = job.ranks * job.micro_batch * job.accumulation * model.context_length
    return tokens / step_seconds(model, job, card).total

"""Main memory of a training: its processes, and the copy of the state that a checkpoint is written from.

Counted: on a GPU, per rank, Python with torch's CUDA libraries, the weights as they are built on the CPU and once more
for the compile check, and the compiler's workers; on a CPU, per rank, Python with torch, state and activations. Beside
them the checkpoint buffers of rank 0. Not counted: token files, which are mapped, and the page cache of what is
written: the system takes both back.

Example::

    needed = host_memory(ModelConfig(), Shares(ranks=8, micro_batch=12, on_gpu=True, compile_workers=4))
    needed.total_bytes / GIB, needed.process_bytes / GIB           # 25.7, 3.0
"""

from __future__ import annotations

import typing

from trainer.arithmetic import GIB, RESERVED_GIB, checkpoint_bytes, memory_gib, parameter_count
from trainer.contract import ModelConfig

PROCESS_BYTES = {True: int(1.3 * GIB), False: int(0.35 * GIB)}
"""Of a rank without a model, on a GPU and on a CPU. On a CPU as measured with torch 2.13; on a GPU an estimate."""
WORKER_BYTES = int(0.12 * GIB)
PINNED_BLOCK_BYTES = 1 << 28
"""Pinned memory comes in powers of two: at most this much is lost to rounding."""


class Shares(typing.NamedTuple):
    """How the run is spread over the machine."""

    ranks: int
    micro_batch: int
    on_gpu: bool
    compile_workers: int = 0
    """Processes of each rank that compile."""
    precision: str = "bf16"
    optimizer: str = "adamw"
    activation_checkpointing: bool = False


class HostMemory(typing.NamedTuple):
    """Bytes of one process, of the checkpoint's copy, and of all together."""

    process_bytes: int
    checkpoint_bytes: int
    total_bytes: int


def host_memory(model: ModelConfig, shares: Shares) -> HostMemory:
    """What the run takes of the machine's main memory at its peak: a prediction."""
    process = PROCESS_BYTES[shares.on_gpu] + (_on_gpu(model, shares) if shares.on_gpu else _on_cpu(model, shares))
    copied = checkpoint_bytes(model, shares.optimizer)
    if shares.on_gpu:
        copied = -(-copied // PINNED_BLOCK_BYTES) * PINNED_BLOCK_BYTES
    return HostMemory(process, copied, shares.ranks * process + copied)


def _on_gpu(model: ModelConfig, shares: Shares) -> int:
    return 2 * 4 * parameter_count(model) + shares.compile_workers * WORKER_BYTES


def _on_cpu(model: ModelConfig, shares: Shares) -> int:
    whole = memory_gib(
        model, shares.micro_batch, shares.precision, shares.activation_checkpointing, shares.optimizer
    )  # fmt: skip
    return int((whole - RESERVED_GIB) * GIB)

"""FSDP2: each rank keeps its rows of every tensor, and gathers one block's weights while it computes that block.

After Zhao et al., arXiv 2304.11277, by torch.distributed.fsdp.fully_shard. Tensors are cut along their first dimension
as torch.chunk cuts them. Gradients are reduced after each micro-batch: to keep them until the last one would take a
whole gradient on every rank. It must not know the loss, the data or files.

Example::

    cut(model, world, dtype=torch.bfloat16, reduced_in=torch.float32, compiled=True)
    optimizers = build_optimizers(model, train)                     # of this rank's rows
    load_state_by_name(model, optimizers, state, own_part)
    parts = own_weights(model)                                      # {"head.weight": (rows of this rank, n_embd)}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from trainer.config.task_config import PRETRAIN
from trainer.contract import ContractError, RunConfig
from trainer.model.block import NOTHING, Block, Shared
from trainer.model.experts import leave_uncompiled
from trainer.model.gpt import GPT
from trainer.model.kv_cache import LayerReader
from trainer.model.optimizers import State, state_by_name
from trainer.training.ranks import World

DDP, FSDP = "ddp", "fsdp"


def is_sharded(config: RunConfig, world: World) -> bool:
    """Whether weights are cut over ranks. Raises ContractError where FSDP cannot do what the config asks for."""
    train = config.train
    if train.parallel not in {DDP, FSDP}:
        raise ContractError(f"train.parallel must be ddp or fsdp, got {train.parallel!r}")
    if train.parallel == DDP:
        return False
    if train.optimizer == "muon":
        raise ContractError(
            "train.parallel: fsdp cuts the matrices that Muon needs whole: set train.optimizer to adamw"
        )
    if train.zero_stage:
        raise ContractError("train.parallel: fsdp shares out the optimizer's state already: set train.zero_stage to 0")
    if config.task.kind != PRETRAIN:
        raise ContractError(
            f"train.parallel: fsdp trains the next token only, not a task ({config.task.kind}): set ddp"
        )
    return world.size > 1


def cut(
    model: GPT, world: World, dtype: torch.dtype | None, reduced_in: torch.dtype, *, compiled: bool = False
) -> None:
    """Cuts the model in place and moves this rank's rows to its device, block by block.

    dtype: that of matrix products under autocast; weights are gathered in it. The residual stream stays fp32.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduced_in, cast_forward_inputs=False)
    mesh = init_device_mesh(world.device.type, (world.size,))
    if compiled:
        leave_uncompiled(model)
    for block in model.blocks:
        if compiled:
            _compile_training(cast(Block, block))
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if dtype is not None:
        model.token_embedding.register_forward_hook(_as_fp32)


def _as_fp32(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return output.float()


def _compile_training(block: Block) -> None:
    """Compiles the block's training pass only, inside the hooks that gather its weights. All blocks share the code."""
    eager = block.forward
    fast = torch.compile(eager, dynamic=False)

    def forward(x: Tensor, reader: LayerReader | None = None, shared: Shared = NOTHING) -> tuple[Tensor, Tensor | None]:
        return (fast if block.training and reader is None else eager)(x, reader, shared)

    block.forward = forward  # type: ignore[method-assign]


def own_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """This rank's rows of something shaped like the parameter, on its device; a scalar whole."""
    if not isinstance(parameter, DTensor) or not whole.dim():
        return whole.to(parameter.device, copy=True)
    mesh = parameter.device_mesh
    first = first_row(len(whole), mesh.size(), mesh.get_local_rank())
    rows = whole[first : first + len(parameter.to_local())].to(parameter.device, copy=True)
    return DTensor.from_local(
        rows, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def first_row(rows: int, size: int, rank: int) -> int:
    """Where a rank's part begins, as torch.chunk cuts: all parts but the last ones are equally long."""
    return min(rows, rank * -(-rows // size))


def own_weights(model: GPT) -> dict[str, Tensor]:
    """This rank's rows by name, padded rows included."""
    cast(FSDPModule, model).reshard()  # a validation leaves the root's weights gathered
    return {name: _local(parameter.detach()) for name, parameter in model.named_parameters()}


def own_state(model: GPT, optimizers: Sequence[Optimizer]) -> State:
    """This rank's rows of the optimizer's state by parameter name, padded rows included; step counts whole."""
    cast(FSDPModule, model).reshard()
    return {
        name: {key: _local(value) for key, value in entry.items()}
        for name, entry in state_by_name(model, optimizers, unpadded=False).items()
    }


def whole_norm(norm: Tensor) -> Tensor:
    """The norm of gradients that are cut, summed over ranks; a scalar on the device."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

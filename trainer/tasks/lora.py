"""Low-rank adapters on the projections of the blocks (Hu et al., arXiv 2106.09685), initialised as `peft` does it.

An adapted projection keeps the names `weight` and `bias`, which no longer learn, and gains `lora_a` (rank, in) and
`lora_b` (out, rank). It must not read files.

Example::

    add_adapters(model, LoraConfig(rank=8, alpha=16.0))
    merged(model.unpadded_state(), LoraConfig(rank=8, alpha=16.0))      # the same function, without adapters
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.task_config import LORA_TARGETS, LoraConfig
from trainer.contract import ContractError
from trainer.model.gpt import GPT, tensor_generator

A, B = "lora_a", "lora_b"


class AdaptedLinear(nn.Module):
    """W x + b + alpha / rank * B A dropout(x). B starts at zero: at first it computes what W did."""

    def __init__(self, within: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.weight, self.bias = within.weight, within.bias
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        self.lora_a = nn.Parameter(torch.empty(config.rank, within.in_features))
        self.lora_b = nn.Parameter(torch.zeros(within.out_features, config.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(low, self.lora_b)


def add_adapters(model: GPT, config: LoraConfig) -> None:
    """Freezes the model and puts adapters on the targets of every block. Raises ContractError for a config that makes
    no sense."""
    _check(config)
    model.requires_grad_(False)
    seed = torch.initial_seed()
    for number, block in enumerate(model.blocks):
        for target in config.targets:
            generator = tensor_generator(seed, f"blocks.{number}.{target}.{A}")
            projection = getattr(block, target, None)
            if not isinstance(projection, nn.Linear):
                raise ContractError(f"task.lora.targets: this model's blocks have no projection {target}")
            setattr(block, target, AdaptedLinear(projection, config, generator))


def _check(config: LoraConfig) -> None:
    unknown = [target for target in config.targets if target not in LORA_TARGETS]
    if unknown or not config.targets:
        raise ContractError(f"task.lora.targets: must be some of {', '.join(LORA_TARGETS)}, got {list(config.targets)}")
    if config.rank < 1 or not 0 <= config.dropout < 1 or not 0 < config.alpha < math.inf:
        raise ContractError(
            f"task.lora: needs rank >= 1, alpha > 0 and 0 <= dropout < 1, got {config.rank}, {config.alpha} and "
            f"{config.dropout}"
        )


def merged(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The tensors of a model without adapters that computes the same: W + alpha / rank * B A."""
    result = {name: tensor for name, tensor in state.items() if not name.endswith((A, B))}
    for name, low in state.items():
        if name.endswith(A):
            weight = name.removesuffix(A) + "weight"
            high = state[name.removesuffix(A) + B]
            update = config.alpha / config.rank * (high.double() @ low.double())
            result[weight] = (state[weight].double() + update).to(state[weight].dtype)
    return result

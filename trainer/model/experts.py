"""A mixture of experts in place of a block's MLP: a router sends each token to the best few, after Shazeer et al.

The weights of the chosen experts are the softmax over their logits alone (arXiv 1701.06538). Every expert runs, also on
no token: then its gradient is zero, not missing, and the ranks of data-parallel training agree on what they average.

Example::

    mlp = Experts(ModelConfig(experts=6, active_experts=2))
    y = mlp(x)                # (batch, time, n_embd)
    mlp.balance               # scalar: 1 where all experts are used alike, `experts` where one takes everything
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.arithmetic import table_columns
from trainer.contract import ContractError, ModelConfig


class Expert(nn.Module):
    """One MLP: 4 n_embd wide, GELU or ReLU squared. Shapes (tokens, n_embd) in and out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.squares = config.activation == "relu2"
        self.mlp_up = nn.Linear(width, 4 * width, bias=config.bias)
        self.mlp_down = nn.Linear(4 * width, width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mlp_up(x)
        hidden = F.relu(hidden).square() if self.squares else F.gelu(hidden, approximate="tanh")
        return cast(Tensor, self.mlp_down(hidden))


class Experts(nn.Module):
    """The router and its experts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.active = config.active_experts
        self.router = nn.Linear(config.n_embd, config.experts, bias=False)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.experts))
        self.balance: Tensor | None = None
        self._mix = _mix

    def stay_uncompiled(self) -> None:
        """Where blocks are compiled: tokens per expert are known only when it runs. (As a decorator this would load
        torch's compiler, two seconds, into every program that reads a model.)"""
        self._mix = torch.compiler.disable(_mix)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """Also leaves `balance`, of this pass, for the loss."""
        return self._mix(self, x)


def _mix(layer: Experts, x: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    logits = layer.router(flat).float()
    best, chosen = logits.topk(layer.active, dim=-1)
    shares = best.softmax(dim=-1)
    layer.balance = _balance(logits, chosen)
    mixed = torch.zeros_like(flat)
    for number, expert in enumerate(layer.experts):
        tokens, places = (chosen == number).nonzero(as_tuple=True)
        out = expert(flat[tokens]) * shares[tokens, places, None]
        mixed = mixed.index_add(0, tokens, out.to(mixed.dtype))
    return mixed.view_as(x)


def _balance(logits: Tensor, chosen: Tensor) -> Tensor:
    """The auxiliary loss of Switch Transformers (arXiv 2101.03961, equation 4): experts x the sum of each expert's
    share of the choices times its mean probability. logits (tokens, experts), chosen (tokens, active)."""
    experts = logits.shape[-1]
    used = torch.bincount(chosen.flatten(), minlength=experts).float() / chosen.numel()
    return experts * (used * logits.softmax(dim=-1).mean(dim=0)).sum()


def leave_uncompiled(model: nn.Module) -> None:
    """Before anything of the model is compiled."""
    for part in model.modules():
        if isinstance(part, Experts):
            part.stay_uncompiled()


def balance_of(model: nn.Module) -> Tensor:
    """The mean over the layers of the pass before."""
    found = [each.balance for each in model.modules() if isinstance(each, Experts) and each.balance is not None]
    return torch.stack(found).mean()


def check_experts_and_tables(config: ModelConfig) -> None:
    """Raises ContractError for experts or tables of low rank that make no sense."""
    if config.experts and not 1 <= config.active_experts <= config.experts:
        raise ContractError(f"model.active_experts must be 1 to {config.experts}, got {config.active_experts}")
    if config.low_rank not in ("input", "output", "both"):
        raise ContractError(f"model.low_rank must be input, output or both, got {config.low_rank!r}")
    if config.tie_embeddings and table_columns(config, "input") != table_columns(config, "output"):
        raise ContractError("model.tie_embeddings needs tables of one shape: set model.low_rank to both")

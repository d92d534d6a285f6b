"""One block of the transformer: GPT-2's, and with options modded-nanogpt's (github.com/KellerJordan/modded-nanogpt).

Options: rotary positions (RoPE, arXiv 2104.09864), queries and keys of unit root mean square (QK-norm), ReLU squared in
place of GELU (arXiv 2109.08668), and values mixed with those of the first block (value residuals, arXiv 2410.17897).
It must not know about layers beside its own.

Example::

    block = Block(ModelConfig(rope=True), number=3)
    x, _ = block(x, shared=Shared(rotation=rotation(positions, head_width=64)))      # x: (batch, time, n_embd)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.arithmetic import has_attention_out_bias
from trainer.contract import ModelConfig
from trainer.model.experts import Experts
from trainer.model.kv_cache import LayerReader

RECOMPUTED_FROM_BYTES = 8 * 2**20
"""Of a block's input on a CPU: then norms and GELU are computed again in the backward pass, six of seventeen values
that a token would keep per layer. With smaller inputs there is memory enough, and the time counts more."""
ROPE_BASE = 10_000.0
VALUE_MIX = 0.5
"""How much of the first block's values a later block takes before it has learned."""


class Shared(NamedTuple):
    """What the blocks of one pass share. `rotation`: cosines and sines, (2, time, head width / 2), or with rows of
    positions (2, rows, 1, time, head width / 2); `values`: those of the first block, (batch, n_head, time, head width).
    """

    rotation: Tensor | None = None
    values: Tensor | None = None


NOTHING = Shared()


class Norm(nn.LayerNorm):
    """LayerNorm in its input's number type, where weights that FSDP gathers come in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Shapes (batch, time, n_embd) in and out."""

    def __init__(self, config: ModelConfig, number: int = 0, activation_checkpointing: bool = False) -> None:
        super().__init__()
        width = config.n_embd
        self.recomputed = activation_checkpointing  # whole, by the model
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qk_norm, self.value_residual = config.qk_norm, config.value_residual
        self.has_experts = config.experts > 0
        self.squares = config.activation == "relu2"
        self.attention_norm = Norm(width, bias=config.bias)
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.attention_out = nn.Linear(width, width, bias=has_attention_out_bias(config))
        self.mlp_norm = Norm(width, bias=config.bias)
        if config.experts:
            self.mlp = Experts(config)
        else:
            self.mlp_up = nn.Linear(width, 4 * width, bias=config.bias)
            self.mlp_down = nn.Linear(4 * width, width, bias=config.bias)
        self.value_mix = nn.Parameter(torch.tensor([VALUE_MIX])) if config.value_residual and number else None

    def forward(
        self, x: Tensor, reader: LayerReader | None = None, shared: Shared = NOTHING
    ) -> tuple[Tensor, Tensor | None]:
        """Also returns its values, where it is the first block and later ones mix them in."""
        spares = self._spares_memory(x)
        mixed, values = self._attend(product(self.attention_norm, self.qkv, x, spares=spares), reader, shared)
        x = x + self._drop(self.attention_out(mixed))
        if self.has_experts:
            return x + self._drop(self.mlp(self.mlp_norm(x))), values
        hidden = product(self.mlp_norm, self.mlp_up, x, spares=spares)
        return x + self._drop(product(self._activate, self.mlp_down, hidden, spares=spares)), values

    def _activate(self, hidden: Tensor) -> Tensor:
        return F.relu(hidden).square() if self.squares else F.gelu(hidden, approximate="tanh")

    def _spares_memory(self, x: Tensor) -> bool:
        large = x.device.type == "cpu" and x.nbytes >= RECOMPUTED_FROM_BYTES
        return large and torch.is_grad_enabled() and not self.recomputed and not torch.compiler.is_compiling()

    def _attend(self, qkv: Tensor, reader: LayerReader | None, shared: Shared) -> tuple[Tensor, Tensor | None]:
        batch, time, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = qkv.view(batch, time, 3, self.n_head, width // self.n_head).permute(2, 0, 3, 1, 4)
        first = v if self.value_residual and self.value_mix is None else None
        if self.value_mix is not None and shared.values is not None:
            v = torch.lerp(v, shared.values, self.value_mix.to(v.dtype))
        if self.qk_norm:
            q, k = (F.rms_norm(each.float(), (each.shape[-1],)).to(each.dtype) for each in (q, k))
        if shared.rotation is not None:
            q, k = rotated(q, shared.rotation), rotated(k, shared.rotation)
        dropout = self.dropout if self.training else 0.0
        if reader is not None:
            mixed = reader.attend(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, time, width), first

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def product(before: Callable[[Tensor], Tensor], linear: nn.Module, x: Tensor, *, spares: bool) -> Tensor:
    """linear(before(x)). Where it spares memory only x is kept: the backward pass computes `before` again, and the
    product not, because torch stops as soon as it has all that was left out. A layer with adapters has dropout and
    further products within, and keeps all."""
    if spares and type(linear) is nn.Linear:
        return checkpoint(lambda x: linear(before(x)), x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
    return linear(before(x))  # type: ignore[no-any-return]


def rotation(positions: Tensor, head_width: int) -> Tensor:
    """Cosines and sines of RoPE's angles position / base^(2 i / head_width), for positions (time,) or (rows, time)."""
    halves = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[..., None] * ROPE_BASE ** (-halves / head_width)
    together = torch.stack([angles.cos(), angles.sin()])
    return together if positions.dim() == 1 else together[:, :, None]


def rotated(x: Tensor, by: Tensor) -> Tensor:
    """x (batch, n_head, time, head width) turned by its positions, each i with i + half the width, as in Llama."""
    cosine, sine = by.unbind()
    one, other = x.float().chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], dim=-1).to(x.dtype)

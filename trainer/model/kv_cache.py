"""Keys and values of the tokens a model has read, so that the next token costs one position and not the whole context.

Rows of different lengths stand right-aligned: `pads` says how many tokens at a row's left are filling, which no query
sees and no position counts. It must not draw tokens; generate.py does.

Example::

    cache = KeyValueCache(model.config, ids.shape[0], capacity=1024, device=model.device)
    model.next_token_logits(ids, cache)              # reads all of ids (batch, time)
    model.next_token_logits(new[:, None], cache)     # reads one token more
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.contract import ModelConfig


class LayerReader(Protocol):
    """What one layer's queries, keys and values (rows, heads, time, head width) go through."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the queries mix out of the values."""


class Reader(Protocol):
    """Goes along as the model reads tokens. `length` were read before."""

    @property
    def length(self) -> int: ...

    @property
    def layers(self) -> Sequence[LayerReader]: ...

    def reading(self, time: int) -> Tensor:
        """Before `time` more tokens; returns their positions, (time,) or (rows, time)."""

    def read(self, time: int) -> None:
        """After them."""


class KeyValueCache:
    """Room for `capacity` tokens of every layer. `length` tokens are in it."""

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, device: torch.device, pads: Tensor | None = None
    ) -> None:
        """pads: (rows,) int64, or None where all rows are equally long."""
        shape = (rows, config.n_head, capacity, config.n_embd // config.n_head)
        self.length = 0
        self.pads = pads if pads is not None and bool(pads.any()) else None
        self.mask: Tensor | None = None
        self.device = device
        self.layers = [LayerCache(self, shape) for _ in range(config.n_layer)]

    def reading(self, time: int) -> Tensor:
        """Prepares for `time` more tokens; returns their positions, (time,) or (rows, time)."""
        total = self.length + time
        places = torch.arange(self.length, total, device=self.device)
        keys = torch.arange(total, device=self.device)
        seen = keys <= places[:, None]
        if self.pads is None:
            self.mask = None if time in (1, total) else seen
            return places
        # A query that is filling itself sees itself: of no key at all the softmax would be NaN.
        real = (keys >= self.pads[:, None])[:, None, :] | (keys == places[:, None])
        self.mask = (seen & real)[:, None]
        return (places - self.pads[:, None]).clamp(min=0)

    def read(self, time: int) -> None:
        """Notes that every layer has them now."""
        self.length += time


class LayerCache:
    """Keys and values (rows, heads, capacity, head width) of one layer, in the type of the first ones it gets."""

    def __init__(self, owner: KeyValueCache, shape: tuple[int, int, int, int]) -> None:
        self.owner, self.shape = owner, shape
        self.stored: tuple[Tensor, Tensor] | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Adds k and v (rows, heads, time, head width); returns what the queries mix out of all so far."""
        if self.stored is None:
            self.stored = (k.new_empty(self.shape), k.new_empty(self.shape))
        begin = self.owner.length
        end = begin + k.shape[2]
        keys, values = self.stored
        keys[:, :, begin:end], values[:, :, begin:end] = k, v
        mask = self.owner.mask
        return F.scaled_dot_product_attention(
            q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, is_causal=mask is None and q.shape[2] > 1
        )

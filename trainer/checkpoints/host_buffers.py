"""Host memory for checkpoints: taken once, filled again at each save, pinned where the state is on a GPU.

PyTorch's own pinned memory rounds every tensor up to a power of two and never gives it back: 3.3 GB for a state of 2,
and twice that with two saves in flight. Here tensors share blocks of one size. The next copy overwrites the one before,
so it waits for the save that still reads it.

Example::

    buffers = HostBuffers()
    copy = buffers.copy({"model": model.state_dict()})     # the same memory at the next call
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 28
"""A power of two, because pinned memory comes in those."""
ALIGNMENT = 64

Value = TypeVar("Value")
Place = tuple[int, int]
"""Number of the block, and the first byte in it."""


class HostBuffers:
    """Holds the blocks. Not for two copies at once: the second overwrites the first."""

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self.block_bytes = block_bytes
        self.blocks: list[Tensor] = []
        self.places: list[Place] = []
        self.sizes: list[int] = []

    @property
    def size_bytes(self) -> int:
        """Of all blocks."""
        return sum(block.nbytes for block in self.blocks)

    def copy(self, value: Value) -> Value:
        """A complete copy of nested tensors in host memory; other values pass unchanged."""
        tensors = list(_tensors(value))
        sizes = [tensor.nbytes for tensor in tensors]
        if sizes != self.sizes:
            self._make_room(sizes, pinned=any(tensor.is_cuda for tensor in tensors))
        places = iter(self.places)
        copied: Value = self._copied(value, places)
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.synchronize()
        return copied

    def _make_room(self, sizes: list[int], *, pinned: bool) -> None:
        block_bytes = max(self.block_bytes, 1 << max(max(sizes, default=1) - 1, 1).bit_length())
        self.sizes, (self.places, ends) = sizes, placed(sizes, block_bytes)
        self.blocks = []  # the old ones go before the new ones come
        self.blocks = [torch.empty(_rounded(end, pinned), dtype=torch.uint8, pin_memory=pinned) for end in ends]

    def _copied(self, value: Any, places: Iterator[Place]) -> Any:
        if isinstance(value, Tensor):
            return self._view(next(places), value).copy_(value.detach(), non_blocking=True)
        if isinstance(value, dict):
            return {key: self._copied(item, places) for key, item in value.items()}
        return value

    def _view(self, place: Place, like: Tensor) -> Tensor:
        """A tensor of that shape with a storage of its own over the block: torch.save writes whole storages."""
        if not like.numel():
            return torch.empty(like.shape, dtype=like.dtype)
        block, offset = self.blocks[place[0]], place[1]
        flat = torch.frombuffer(block.numpy(), dtype=like.dtype, count=like.numel(), offset=offset)
        return flat.view(like.shape)


def placed(sizes: list[int], block_bytes: int) -> tuple[list[Place], list[int]]:
    """Where each of sizes goes, in blocks of block_bytes, and where each block ends. The largest first, each into the
    first block with room."""
    places: list[Place] = [(0, 0)] * len(sizes)
    ends: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        size = math.ceil(sizes[number] / ALIGNMENT) * ALIGNMENT
        block = next((index for index, end in enumerate(ends) if end + size <= block_bytes), len(ends))
        if block == len(ends):
            ends.append(0)
        places[number] = (block, ends[block])
        ends[block] += size
    return places, ends


def _rounded(size_bytes: int, pinned: bool) -> int:
    """What pinned memory would be rounded to anyway."""
    return 1 << max(size_bytes - 1, 1).bit_length() if pinned else size_bytes


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)

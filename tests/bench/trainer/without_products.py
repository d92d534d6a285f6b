"""A dispatch mode under which products of matrices and attention answer zeros at once: what is left of a step
allocates, frees and moves what it always does.

So the memory of a step of 124 million parameters is measured in seconds, on either side alike. What the libraries take
for their own work within a product is left out.

Example::

    with WithoutProducts():
        train(...)
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class WithoutProducts(TorchDispatchMode):
    """Zeros in place of a product; each result is written, so that its memory is really there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = PRODUCTS.get(func)
        return func(*args, **(kwargs or {})) if product is None else product(*args, **(kwargs or {}))


def multiplies_bf16() -> bool:
    """Whether this CPU's products in bf16 are at least half as fast as in fp32, by processor time: where they are
    emulated, a step of 124 million parameters takes a twentieth of the rate."""
    return _product_s(torch.bfloat16) <= 2 * _product_s(torch.float32)


def _product_s(dtype: torch.dtype) -> float:
    matrix = torch.ones(256, 256, dtype=dtype)
    took = []
    for _ in range(3):
        began = time.process_time()
        matrix @ matrix
        took.append(time.process_time() - began)
    return min(took)


def _mm(left: Tensor, right: Tensor) -> Tensor:
    return left.new_zeros(left.shape[0], right.shape[1])


def _bmm(left: Tensor, right: Tensor) -> Tensor:
    return left.new_zeros(left.shape[0], left.shape[1], right.shape[2])


def _addmm(_: Tensor, left: Tensor, right: Tensor, **__: float) -> Tensor:
    return _mm(left, right)


def _added(into: Tensor, *_: Tensor, **__: float) -> Tensor:
    return into


def _written(*_: Any, out: Tensor, **__: Any) -> Tensor:
    return out.zero_()


def _attention(query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    batch, heads, time, width = query.shape
    output = query.new_zeros(batch, time, heads, width).transpose(1, 2)  # as the kernel lays it out
    return output, query.new_zeros(batch, heads, time, dtype=torch.float32)


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> list[Tensor]:
    return [torch.zeros_like(each) for each in (query, key, value)]


PRODUCTS = {
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.addmm.default: _addmm,
    aten.addmm_.default: _added,
    aten.mm.out: _written,
    aten.addmm.out: _written,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}

"""The number type of matrix products: bf16, fp16 or plain fp32, and the autocast context for it.

Example::

    dtype, remark = choose_precision("bf16", device)      # (torch.float16, "Tesla T4 has no bf16: ...") on a T4
    autocast = autocast_to(dtype, device)
    with autocast():
        loss = model(ids, targets)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from trainer.contract import ContractError

Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a forward pass runs."""

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The autocast type of each precision; None: no autocast."""


def choose_precision(precision: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """The autocast type for training, and the reason where it differs from `precision`. Raises ContractError."""
    if precision not in DTYPES:
        raise ContractError(f"train.precision must be bf16, fp16 or fp32, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        return torch.bfloat16, "fp16 needs a GPU: training in bf16 on this CPU"
    if precision == "bf16" and device.type != "cpu" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16, f"{torch.cuda.get_device_name(device)} has no bf16: training in fp16 with a scaler"
    return DTYPES[precision], ""


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> Autocast:
    """A maker of autocast contexts; of empty ones for plain fp32."""
    if dtype is None:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype)

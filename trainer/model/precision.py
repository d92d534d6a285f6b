"""The number type of matrix products: bf16, fp16 or plain fp32, the autocast context for it, and fp16's loss scale.

Example::

    dtype, remark = choose_precision("bf16", device)      # (torch.float16, "Tesla T4 has no bf16: ...") on a T4
    autocast = autocast_to(dtype, device)
    with autocast():
        loss = model(ids, targets)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

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


class LossScaler:
    """torch.amp.GradScaler's rule and state, without its pass over the gradients: the optimizer divides them itself.

    A step with non-finite gradients halves the scale, 2,000 steps in a row without one double it. All on the device.
    """

    GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000

    def __init__(self, device: torch.device, enabled: bool, init_scale: float = 65536.0) -> None:
        self.enabled = enabled
        self.scale = torch.tensor(init_scale, device=device) if enabled else None
        self.steady_steps = torch.zeros((), dtype=torch.int32, device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return loss if self.scale is None else loss * self.scale

    def update(self, nonfinite: Tensor) -> None:
        """Counts one step; nonfinite is a scalar on the device, 0 or 1."""
        if self.scale is not None:
            torch._amp_update_scale_(self.scale, self.steady_steps, nonfinite, self.GROWTH, self.BACKOFF, self.INTERVAL)

    def state_dict(self) -> dict[str, object]:
        """The keys of GradScaler's state, or nothing without a scale. Waits for the device."""
        if self.scale is None:
            return {}
        return {
            "scale": self.scale.item(),
            "growth_factor": self.GROWTH,
            "backoff_factor": self.BACKOFF,
            "growth_interval": self.INTERVAL,
            "_growth_tracker": int(self.steady_steps.item()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse; another run's scale does not matter to one without."""
        if self.scale is not None and state:
            self.scale.fill_(state["scale"])
            self.steady_steps.fill_(state["_growth_tracker"])

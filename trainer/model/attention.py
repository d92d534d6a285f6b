"""The attention kernel: the same on every card, and known by name.

torch prefers cuDNN's kernel on compute capability 9.0 and flash attention on 8.0: then a run on an H100 would differ
from the same run on an A100 by more than its hardware. It must not compute anything of the model.

Example::

    same_attention_everywhere()
    attention_kernel(ModelConfig(), torch.device("cuda"), torch.bfloat16)       # "flash"
"""

from __future__ import annotations

import torch
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention, enable_cudnn_sdp

from trainer.contract import ModelConfig


def same_attention_everywhere() -> None:
    """Leaves flash attention as the first choice, where a card and its number type have it."""
    enable_cudnn_sdp(False)


def attention_kernel(model: ModelConfig, device: torch.device, dtype: torch.dtype | None) -> str:
    """The kernel that scaled_dot_product_attention takes for this model: flash, efficient or math; `cpu` on a CPU."""
    if device.type != "cuda":
        return "cpu"
    shape = (1, model.n_head, model.context_length, model.n_embd // model.n_head)
    q = torch.empty(shape, device=device, dtype=dtype or torch.float32, requires_grad=True)
    params = SDPAParams(q, q, q, None, model.dropout, True, False)
    if can_use_flash_attention(params):
        return "flash"
    return "efficient" if can_use_efficient_attention(params) else "math"

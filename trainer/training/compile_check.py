"""Twenty small steps, compiled and eager from the same weights: does `torch.compile` work on this machine?

An A100 with torch 2.10 gave NaN, machines without a compiler give an error: a paid run must notice both in its first
seconds. The check restores the weights and must not touch the optimizer.

Example::

    reason = compile_fault(model, batches, autocast)      # None: compiled and agreeing; else why not
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.model.gpt import GPT
from trainer.model.precision import Autocast
from trainer.training.failures import is_out_of_memory

STEPS = 20
STEP_LENGTH = 0.1
"""Distance in weight space of one step along the gradient: enough to show a wrong gradient, too little to diverge."""
TOLERANCE = 0.02
TOLERANCE_WITH_DROPOUT = 0.1
"""Relative difference of losses. bf16 kernels differ by 0.1 %; with dropout each run draws its own masks."""

Batch = tuple[Tensor, Tensor]


def compile_fault(model: GPT, batches: Sequence[Batch], autocast: Autocast) -> str | None:
    """Compiles the model's parts and compares; returns None, or the reason why it should run eagerly.

    Raises what is_out_of_memory() recognises where the micro-batch does not fit.
    """
    before = {name: tensor.to("cpu", copy=True) for name, tensor in model.unpadded_state().items()}
    model.compile_parts(False)
    try:
        eager = _losses(model, batches, autocast)
        model.load_unpadded_state(before)
        model.compile_parts(True)
        return _difference(eager, _losses(model, batches, autocast), model.config.dropout)
    except (RuntimeError, OSError, ImportError) as error:  # what dynamo, inductor, Triton and a missing compiler raise
        if is_out_of_memory(error):
            raise  # eager needs even more: the caller has to take a smaller micro-batch
        return f"torch.compile fails: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        model.load_unpadded_state(before)
        model.zero_grad(set_to_none=True)


def _losses(model: GPT, batches: Sequence[Batch], autocast: Autocast) -> list[float]:
    """Losses along a descent with normalised gradients: later ones depend on the gradients before."""
    losses = []
    for ids, targets in batches:
        with autocast():
            loss: Tensor = model(ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        _descend([parameter for parameter in model.parameters() if parameter.grad is not None])
    return torch.stack(losses).tolist()


@torch.no_grad()
def _descend(parameters: Sequence[nn.Parameter]) -> None:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.sub_(gradient * (STEP_LENGTH / norm))
        parameter.grad = None


def _difference(eager: list[float], compiled: list[float], dropout: float) -> str | None:
    tolerance = TOLERANCE_WITH_DROPOUT if dropout else TOLERANCE
    for step, (expected, got) in enumerate(zip(eager, compiled, strict=True), start=1):
        if math.isfinite(expected) and not abs(got - expected) <= tolerance * abs(expected):
            return f"compiled loss {got:.4f} at canary step {step}, eager {expected:.4f}"
    return None

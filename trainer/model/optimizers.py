"""Optimizers, the learning-rate schedule, and optimizer state by parameter name.

It must not see data or ranks. State is stored by name, so it loads under another world size, device or parameter order.

Example::

    optimizers = build_optimizers(model, train)
    set_learning_rate(optimizers, learning_rate(step, train))
    state = state_by_name(model, optimizers)             # {"head.weight": {"step": ..., "exp_avg": ...}, ...}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from trainer.config.config_tables import RateFactors
from trainer.contract import ContractError, TrainConfig
from trainer.model.gpt import GPT
from trainer.model.muon import ALONE, Muon, Peers
from trainer.model.precision import LossScaler

State = dict[str, dict[str, Tensor]]


def build_optimizers(model: GPT, train: TrainConfig, peers: Peers = ALONE) -> list[Optimizer]:
    """Fused AdamW for all that learns, or Muon for the blocks' matrices, shared among peers, and AdamW for the rest."""
    if train.optimizer not in {"adamw", "muon"}:
        raise ContractError(f"train.optimizer must be adamw or muon, got {train.optimizer!r}")
    if model.config.tie_embeddings and train.rate_factors.head != train.rate_factors.token_embedding:
        raise ContractError("train.rate_factors.head must equal token_embedding: the model ties the two")
    parameters = _learning(model)
    hidden = {name for name, p in parameters.items() if name.startswith("blocks.") and p.dim() == 2}
    if train.optimizer == "adamw":
        return [_adamw(parameters, train)]
    muon = _muon({name: parameters[name] for name in sorted(hidden)}, train, peers)
    return [muon, _adamw({name: p for name, p in parameters.items() if name not in hidden}, train)]


def _learning(model: GPT) -> dict[str, nn.Parameter]:
    """By name; those that adapters froze are not there."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _muon(matrices: Mapping[str, nn.Parameter], train: TrainConfig, peers: Peers) -> Muon:
    groups: dict[tuple[float, int], list[nn.Parameter]] = {}
    for name, parameter in matrices.items():
        parts = 3 if train.split_qkv and name.endswith("qkv.weight") else 1
        groups.setdefault((rate_factor(name, parameter, train.rate_factors), parts), []).append(parameter)
    described = [{"params": members, "factor": factor, "parts": parts} for (factor, parts), members in groups.items()]
    return Muon(described, train.learning_rate, train.weight_decay, peers)


def _adamw(parameters: Mapping[str, nn.Parameter], train: TrainConfig) -> AdamW:
    if train.decay not in {"matrices", "all"}:
        raise ContractError(f"train.decay must be matrices or all, got {train.decay!r}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        weight_decay = train.weight_decay if train.decay == "all" or parameter.dim() >= 2 else 0.0
        groups.setdefault((rate_factor(name, parameter, train.rate_factors), weight_decay), []).append(parameter)
    described = [
        {"params": members, "factor": factor, "weight_decay": weight_decay}
        for (factor, weight_decay), members in groups.items()
    ]
    return AdamW(described, lr=train.learning_rate, betas=train.betas, fused=True)


def rate_factor(name: str, parameter: Tensor, factors: RateFactors) -> float:
    """By what the learning rate of this parameter is multiplied: blocks.3.mlp_up.weight takes the factor mlp_up."""
    return float(getattr(factors, "vectors" if parameter.dim() < 2 else name.split(".")[-2], 1.0))


def learning_rate(step: int, train: TrainConfig) -> float:
    """The learning rate of step (from 0): linear warmup, then the schedule down to the minimum at the last step."""
    warmup = round(train.warmup_fraction * train.steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, train.steps - 1 - warmup)
    low = train.min_learning_rate_fraction
    return train.learning_rate * (low + (1 - low) * _height(train, min(1.0, progress)))


def _height(train: TrainConfig, progress: float) -> float:
    """From 1 at the end of the warmup to 0 at the last step; `constant` stays at 1."""
    if train.schedule == "constant":
        return 1.0
    if train.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if train.schedule == "linear":
        return 1 - progress
    if train.schedule == "wsd":
        return min(1.0, (1 - progress) / train.decay_fraction) if train.decay_fraction else 1.0
    raise ContractError(f"train.schedule must be constant, cosine, linear or wsd, got {train.schedule!r}")


def set_learning_rate(optimizers: Sequence[Optimizer], value: float) -> None:
    """The value for all parameters, times the factor of each."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value * group["factor"]


def step_unless_nonfinite(optimizers: Sequence[Optimizer], nonfinite: Tensor, divisor: Tensor | None = None) -> None:
    """Steps all optimizers, or changes nothing where nonfinite (a scalar on the device, 0 or 1) is 1.

    The gradients count divided by divisor, a scalar on the device. Fused AdamW reads both there and divides while it
    steps, so neither the host nor another pass over the gradients is needed. Muon's gradients are divided before.
    """
    for optimizer in optimizers:
        optimizer.found_inf = nonfinite  # type: ignore[attr-defined]
        if isinstance(optimizer, AdamW):
            optimizer.grad_scale = divisor  # type: ignore[attr-defined]
        elif divisor is not None:
            torch._foreach_div_([p.grad for p in parameters_with_gradient([optimizer]) if p.grad is not None], divisor)
        optimizer.step()


def clip_divisor(norm: Tensor, grad_clip: float | None, scaler: LossScaler) -> Tensor | None:
    """What gradients are divided by so that their norm, without the loss scale, is at most grad_clip; None: by nothing.

    norm: without the loss scale. The same rule as torch.nn.utils.clip_grad_norm_.
    """
    if grad_clip is None:
        return scaler.scale
    beyond = ((norm + 1e-6) / grad_clip).clamp(min=1.0)
    return beyond if scaler.scale is None else beyond * scaler.scale


def state_by_name(model: GPT, optimizers: Sequence[Optimizer], *, unpadded: bool = True) -> State:
    """Moments and step counts by parameter name, without padded rows. On the device, not copied."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: {k: model.unpad(names[parameter], v) if unpadded else v for k, v in entry.items()}
        for optimizer in optimizers
        for parameter, entry in optimizer.state.items()
        if parameter in names  # else it is a part that ZeRO made
    }


def load_state_by_name(
    model: GPT,
    optimizers: Sequence[Optimizer],
    state: Mapping[str, Mapping[str, Tensor]],
    copied: Callable[[Tensor, Tensor], Tensor] = lambda parameter, value: value.to(parameter.device, copy=True),
) -> None:
    """The inverse, copied to where each parameter is. ValueError where names of parameters and states differ."""
    names = {parameter: name for name, parameter in _learning(model).items()}
    if state and (state.keys() ^ set(names.values())):
        raise ValueError(f"optimizer state does not fit the model: {sorted(state.keys() ^ set(names.values()))[0]}")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"] if state else []:
                name = names[parameter]
                optimizer.state[parameter] = {
                    key: copied(parameter, model.pad(name, value)) for key, value in state[name].items()
                }


def gradient_norm(optimizers: Sequence[Optimizer]) -> Tensor:
    """Of all gradients; a scalar on the device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters_with_gradient(optimizers) if p.grad is not None])


def parameters_with_gradient(optimizers: Sequence[Optimizer]) -> list[nn.Parameter]:
    """All parameters that have a gradient, in the optimizers' order."""
    return [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]

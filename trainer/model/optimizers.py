"""Optimizers, the learning-rate schedule, and optimizer state by parameter name.

It must not see data or ranks. State is stored by name, so it loads under another world size, device or parameter order.

Example::

    optimizers = build_optimizers(model, train)
    set_learning_rate(optimizers, learning_rate(step, train))
    state = state_by_name(model, optimizers)             # {"head.weight": {"step": ..., "exp_avg": ...}, ...}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from trainer.contract import ContractError, TrainConfig
from trainer.model.gpt import GPT

DECAY_SHARE_OF_WSD = 0.2
"""Warmup-stable-decay: the last fifth of the steps decays (Hu et al., arXiv 2404.06395, use 10-20 %)."""

State = dict[str, dict[str, Tensor]]


def build_optimizers(model: GPT, train: TrainConfig) -> list[Optimizer]:
    """Fused AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""
    parameters = dict(model.named_parameters())
    if train.optimizer == "adamw":
        return [_adamw(list(parameters.values()), train)]
    if train.optimizer != "muon":
        raise ContractError(f"train.optimizer must be adamw or muon, got {train.optimizer!r}")
    hidden = {name for name, p in parameters.items() if name.startswith("blocks.") and p.dim() == 2}
    rest = [p for name, p in parameters.items() if name not in hidden]
    # match_rms_adamw scales the update so that AdamW's learning rate and weight decay fit both (arXiv 2502.16982).
    muon = Muon(
        [parameters[name] for name in sorted(hidden)],
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, _adamw(rest, train)]


def _adamw(parameters: Sequence[nn.Parameter], train: TrainConfig) -> AdamW:
    if train.decay not in {"matrices", "all"}:
        raise ContractError(f"train.decay must be matrices or all, got {train.decay!r}")
    decayed = [p for p in parameters if train.decay == "all" or p.dim() >= 2]
    not_decayed = [p for p in parameters if train.decay != "all" and p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}]
    return AdamW([group for group in groups if group["params"]], lr=train.learning_rate, betas=train.betas, fused=True)


def learning_rate(step: int, train: TrainConfig) -> float:
    """The learning rate of step (from 0): linear warmup, then the schedule down to the minimum at the last step."""
    warmup = round(train.warmup_fraction * train.steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, train.steps - 1 - warmup)
    low = train.min_learning_rate_fraction
    return train.learning_rate * (low + (1 - low) * _height(train.schedule, min(1.0, progress)))


def _height(schedule: str, progress: float) -> float:
    """From 1 at the end of the warmup to 0 at the last step; `constant` stays at 1."""
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "wsd":
        return min(1.0, (1 - progress) / DECAY_SHARE_OF_WSD)
    raise ContractError(f"train.schedule must be constant, cosine, linear or wsd, got {schedule!r}")


def set_learning_rate(optimizers: Sequence[Optimizer], value: float) -> None:
    """One value for all parameters."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value


def step_unless_nonfinite(optimizers: Sequence[Optimizer], nonfinite: Tensor) -> None:
    """Steps all optimizers, or changes nothing where nonfinite (a scalar on the device, 0 or 1) is 1.

    Fused AdamW reads the flag on the device, so the host does not wait. Muon cannot, and waits.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, AdamW):
            optimizer.found_inf = nonfinite  # type: ignore[attr-defined]
            optimizer.step()
        elif not nonfinite.item():
            optimizer.step()


def state_by_name(model: GPT, optimizers: Sequence[Optimizer]) -> State:
    """Moments and step counts by parameter name, without padded rows. On the device, not copied."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: {key: model.unpad(names[parameter], value) for key, value in entry.items()}
        for optimizer in optimizers
        for parameter, entry in optimizer.state.items()
    }


def load_state_by_name(model: GPT, optimizers: Sequence[Optimizer], state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """The inverse, copied to each parameter's device. ValueError where names of parameters and states differ."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    if state and (state.keys() ^ set(names.values())):
        raise ValueError(f"optimizer state does not fit the model: {sorted(state.keys() ^ set(names.values()))[0]}")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"] if state else []:
                name = names[parameter]
                optimizer.state[parameter] = {
                    key: model.pad(name, value).to(parameter.device, copy=True) for key, value in state[name].items()
                }


def parameters_with_gradient(optimizers: Sequence[Optimizer]) -> list[nn.Parameter]:
    """All parameters that have a gradient, in the optimizers' order."""
    return [p for o in optimizers for group in o.param_groups for p in group["params"] if p.grad is not None]


def make_scaler(enabled: bool) -> torch.amp.GradScaler:
    """The gradient scaler of fp16; a disabled one changes nothing."""
    return torch.amp.GradScaler("cuda", enabled=enabled)

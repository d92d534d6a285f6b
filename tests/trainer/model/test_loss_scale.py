"""The loss scale against torch.amp.GradScaler, and clipping inside the optimizer against clipping before it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.files.small_runs import TINY
from trainer.contract import TrainConfig
from trainer.model.gpt import GPT
from trainer.model.optimizers import build_optimizers, clip_divisor, parameters_with_gradient, step_unless_nonfinite
from trainer.model.precision import LossScaler

CPU = torch.device("cpu")
OFF = LossScaler(CPU, enabled=False)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_it_follows_the_rule_of_gradscaler(overflows: list[bool]) -> None:
    theirs = torch.amp.GradScaler("cpu", growth_interval=5)
    theirs.scale(torch.ones(()))
    ours = LossScaler(CPU, enabled=True)
    ours.INTERVAL = 5  # type: ignore[misc]
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter])
    for overflow in overflows:
        parameter.grad = torch.tensor(torch.inf if overflow else 1.0)
        theirs.step(optimizer)
        theirs.update()
        ours.update(torch.tensor(float(overflow)))
        assert ours.state_dict() == theirs.state_dict()
    again = LossScaler(CPU, enabled=True)
    again.INTERVAL = 5  # type: ignore[misc]
    again.load_state_dict(theirs.state_dict())
    assert again.state_dict() == ours.state_dict() and OFF.state_dict() == {}


def gradients(model: GPT, scale: float) -> None:
    ids = torch.arange(32)[None]
    (model(ids, ids + 1) * scale).backward()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("grad_clip", [None, 0.1, 1e9])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_clipping_inside_the_optimizer_is_clipping_before_it(
    optimizer: str, grad_clip: float | None, scale: float
) -> None:
    models = []
    for folded in (True, False):
        torch.manual_seed(0)
        model = GPT(TINY)
        optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer, learning_rate=1e-2))
        scaler = LossScaler(CPU, enabled=scale != 1.0, init_scale=scale)
        for _ in range(3):
            gradients(model, scale if folded else 1.0)
            parameters = parameters_with_gradient(optimizers)
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            if folded:
                step_unless_nonfinite(optimizers, torch.zeros(()), clip_divisor(norm / scale, grad_clip, scaler))
            else:
                if grad_clip is not None:
                    torch.nn.utils.clip_grads_with_norm_(parameters, grad_clip, norm)
                step_unless_nonfinite(optimizers, torch.zeros(()))
            model.zero_grad()
        models.append(model.unpadded_state())
    for name, tensor in models[0].items():
        assert torch.allclose(tensor, models[1][name], rtol=1e-4, atol=2e-6), name


@pytest.mark.parametrize("grad_clip", [None, 1.0])
def test_without_clip_and_scale_nothing_is_divided(grad_clip: float | None) -> None:
    assert (clip_divisor(torch.tensor(0.5), grad_clip, OFF) is None) == (grad_clip is None)


def test_the_heads_gradient_is_taken_without_a_copy() -> None:
    model, ids = GPT(TINY), torch.arange(32)[None]
    loss = model(ids, ids + 1)
    made = loss.grad_fn.gradients[1]
    place = made.data_ptr()
    del made
    loss.backward()
    assert model.head.weight.grad is not None and model.head.weight.grad.data_ptr() == place

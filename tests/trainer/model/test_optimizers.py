"""Schedules against their definitions, decay where it belongs, skipped steps that change nothing, state by name."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.files.small_runs import TINY
from trainer.contract import TrainConfig
from trainer.model.gpt import GPT
from trainer.model.optimizers import (
    build_optimizers,
    learning_rate,
    load_state_by_name,
    set_learning_rate,
    state_by_name,
    step_unless_nonfinite,
)

TRAIN = TrainConfig(steps=1000, learning_rate=1.0, warmup_fraction=0.05, min_learning_rate_fraction=0.1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.02, 49: 1.0, 50: 1.0, 525: 1.0, 999: 1.0}),
        ("cosine", {0: 0.02, 49: 1.0, 50: 1.0, 999: 0.1}),
        ("linear", {0: 0.02, 49: 1.0, 50: 1.0, 999: 0.1}),
        ("wsd", {0: 0.02, 49: 1.0, 50: 1.0, 525: 1.0, 800: 1.0, 999: 0.1}),
    ],
)
def test_schedules_at_their_corners(schedule: str, expected: dict[int, float]) -> None:
    train = dataclasses.replace(TRAIN, schedule=schedule)
    assert {step: learning_rate(step, train) for step in expected} == pytest.approx(expected)


def test_the_middle_of_the_decays() -> None:
    middle = 50 + (999 - 50) / 2
    around = [
        learning_rate(math.floor(middle), dataclasses.replace(TRAIN, schedule=name)) for name in ("cosine", "linear")
    ]
    assert around == pytest.approx([0.55, 0.55], abs=2e-3)


@given(
    steps=st.integers(1, 400),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "cosine", "linear", "wsd"]),
    low=st.floats(0, 1),
)
def test_up_once_then_never_up_again(steps: int, warmup: float, schedule: str, low: float) -> None:
    train = TrainConfig(
        steps=steps, learning_rate=2.0, warmup_fraction=warmup, schedule=schedule, min_learning_rate_fraction=low
    )
    rates = [learning_rate(step, train) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 <= rate <= 2.0 + 1e-9 for rate in rates)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rates[top:]))


@pytest.mark.parametrize("field", ["schedule", "optimizer", "decay"])
def test_unknown_names_are_refused_with_the_known_ones(field: str) -> None:
    train = dataclasses.replace(TRAIN, **{field: "bogus"})
    with pytest.raises(ValueError, match=f"train.{field} must be .* or .*, got 'bogus'"):
        build_optimizers(GPT(TINY), train)
        learning_rate(500, train)


def stepped(model: GPT, train: TrainConfig, steps: int = 3, nonfinite: float = 0.0) -> list[torch.optim.Optimizer]:
    optimizers = build_optimizers(model, train)
    set_learning_rate(optimizers, 1e-2)
    step(model, optimizers, steps, nonfinite)
    return optimizers


def step(model: GPT, optimizers: list[torch.optim.Optimizer], steps: int = 3, nonfinite: float = 0.0) -> None:
    ids = torch.arange(32)[None]
    for _ in range(steps):
        model(ids, ids + 1).backward()
        step_unless_nonfinite(optimizers, torch.tensor(nonfinite))
        model.zero_grad()


@pytest.mark.parametrize(("decay", "shrinks"), [("matrices", False), ("all", True)])
def test_decay_reaches_vectors_only_when_asked(decay: str, shrinks: bool) -> None:
    model = GPT(TINY)
    optimizers = build_optimizers(model, TrainConfig(decay=decay, weight_decay=0.5))
    set_learning_rate(optimizers, 0.1)
    with torch.no_grad():
        model.blocks[0].mlp_up.bias.fill_(1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    matrix = model.head.weight[5, 5].item()
    step_unless_nonfinite(optimizers, torch.tensor(0.0))
    assert model.head.weight[5, 5].item() == pytest.approx(0.95 * matrix)
    assert model.blocks[0].mlp_up.bias.unique().tolist() == pytest.approx([0.95 if shrinks else 1.0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_non_finite_step_changes_nothing(optimizer: str) -> None:
    torch.manual_seed(0)
    model = GPT(TINY)
    optimizers = stepped(model, TrainConfig(optimizer=optimizer))
    weights = {name: tensor.clone() for name, tensor in model.unpadded_state().items()}
    state = {name: {k: v.clone() for k, v in entry.items()} for name, entry in state_by_name(model, optimizers).items()}
    step(model, optimizers, steps=1, nonfinite=1.0)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.unpadded_state().items())
    after = state_by_name(model, optimizers)
    assert all(torch.equal(after[name][key], state[name][key]) for name in state for key in state[name])
    step(model, optimizers, steps=1)
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in model.unpadded_state().items())


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = GPT(TINY)
    muon, adamw = build_optimizers(model, TrainConfig(optimizer="muon"))
    names = {parameter: name for name, parameter in model.named_parameters()}
    taken = {names[parameter] for group in muon.param_groups for parameter in group["params"]}
    rest = {names[parameter] for group in adamw.param_groups for parameter in group["params"]}
    kinds = ("qkv", "attention_out", "mlp_up", "mlp_down")
    assert taken == {f"blocks.{layer}.{kind}.weight" for layer in range(2) for kind in kinds}
    assert taken | rest == set(names.values())
    assert not taken & rest


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_by_name_goes_on_as_if_nothing_had_happened(optimizer: str) -> None:
    torch.manual_seed(0)
    train = TrainConfig(optimizer=optimizer)
    model = GPT(TINY)
    optimizers = stepped(model, train)
    saved = {name: {k: v.clone() for k, v in entry.items()} for name, entry in state_by_name(model, optimizers).items()}
    assert saved["head.weight"]["exp_avg"].shape == (257, 32)
    torch.manual_seed(1)
    other = GPT(TINY)
    other.load_unpadded_state({name: tensor.clone() for name, tensor in model.unpadded_state().items()})
    others = build_optimizers(other, train)
    set_learning_rate(others, 1e-2)
    load_state_by_name(other, others, saved)
    step(model, optimizers)
    step(other, others)
    for name, tensor in model.unpadded_state().items():
        assert torch.equal(tensor, other.unpadded_state()[name]), name


def test_state_of_another_model_is_named() -> None:
    model = GPT(TINY)
    saved = state_by_name(model, stepped(model, TrainConfig()))
    deeper = GPT(dataclasses.replace(TINY, n_layer=3))
    with pytest.raises(ValueError, match=r"does not fit the model: blocks\.2"):
        load_state_by_name(deeper, build_optimizers(deeper, TrainConfig()), saved)

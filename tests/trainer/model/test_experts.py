"""Mixtures of experts and tables of low rank: against plain versions, in counts, in gradients, in exports."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.arithmetic import (
    active_parameter_count,
    chinchilla_tokens,
    flop_per_token,
    memory_gib,
    parameter_count,
)
from trainer.contract import ContractError, ModelConfig, TrainConfig
from trainer.model.experts import Experts, balance_of
from trainer.model.gpt import GPT
from trainer.model.optimizers import build_optimizers, load_state_by_name, state_by_name
from trainer.weights.gpt2_layout import NotExpressibleError, expected_shapes, layout_name, read_shape

TINY = ModelConfig(300, 16, 2, 2, 32)
MIXED = dataclasses.replace(TINY, experts=5, active_experts=2)
LOW = [dataclasses.replace(TINY, embedding_rank=8, low_rank=side) for side in ("input", "output", "both")]
TIED = dataclasses.replace(TINY, embedding_rank=8, tie_embeddings=True)
REFERENCE = ModelConfig(experts=6, active_experts=2)


def build(config: ModelConfig, seed: int = 3) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


def batch(config: ModelConfig) -> tuple[Tensor, Tensor]:
    ids = torch.randint(config.vocab_size, (3, config.context_length + 1), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1], ids[:, 1:]


def plain_mixture(mlp: Experts, x: Tensor) -> Tensor:
    """Every expert on every token, weighted by the softmax of the chosen logits; zero for the others."""
    logits = mlp.router(x)
    kept = torch.full_like(logits, -torch.inf)
    best = logits.topk(mlp.active, dim=-1)
    weights = kept.scatter(-1, best.indices, best.values).softmax(dim=-1)
    return sum(  # type: ignore[return-value]
        weights[..., number, None] * expert(x) for number, expert in enumerate(mlp.experts)
    )


@pytest.mark.parametrize("active", [1, 2, 5])
def test_a_mixture_equals_every_expert_on_every_token(active: int) -> None:
    mlp = build(dataclasses.replace(MIXED, active_experts=active)).blocks[0].mlp
    mlp.router.weight.data.normal_()
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(mlp(x), plain_mixture(mlp, x), rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(mlp(x).square().sum(), list(mlp.parameters()))
    plain = torch.autograd.grad(plain_mixture(mlp, x).square().sum(), list(mlp.parameters()), allow_unused=True)
    assert len(ours) == 1 + 5 * 4
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-4, atol=1e-5)


def test_one_expert_is_the_plain_model() -> None:
    alone, dense = build(dataclasses.replace(TINY, experts=1, active_experts=1)), build(TINY)
    state = dense.unpadded_state()
    renamed = {re.sub(r"\.mlp_(up|down)", r".mlp.experts.0.mlp_\1", name): tensor for name, tensor in state.items()}
    routers = {name: tensor for name, tensor in alone.unpadded_state().items() if "router" in name}
    with torch.no_grad():
        alone.load_unpadded_state({**renamed, **routers})
    assert float(alone(*batch(TINY)).detach()) == pytest.approx(float(dense(*batch(TINY)).detach()), rel=1e-6)


@pytest.mark.parametrize("config", [*LOW, TIED], ids=lambda each: f"{each.low_rank}, tied {each.tie_embeddings}")
def test_a_table_of_low_rank_equals_the_whole_table_of_its_product(config: ModelConfig) -> None:
    low = build(config)
    whole = build(dataclasses.replace(config, embedding_rank=0, tie_embeddings=False))
    with torch.no_grad():
        state = {name: tensor.clone() for name, tensor in low.unpadded_state().items()}
        table, head = state["token_embedding.weight"], low.head.weight[: config.vocab_size].detach()
        up, down = state.pop("embedding_up.weight", None), state.pop("head_down.weight", None)
        state["token_embedding.weight"] = table if up is None else table @ up.T
        state["head.weight"] = head if down is None else head @ down
        whole.load_unpadded_state(state)
    ids, targets = batch(config)
    torch.testing.assert_close(low(ids), whole(ids), rtol=1e-4, atol=1e-5)
    assert float(low(ids, targets).detach()) == pytest.approx(float(whole(ids, targets).detach()), rel=1e-5)
    assert float(low(ids, targets).detach()) == pytest.approx(math.log(300), abs=0.3), "it starts as GPT-2 does"


def test_published_counts_of_the_mixture() -> None:
    assert parameter_count(REFERENCE) == 446_410_752
    assert active_parameter_count(REFERENCE) == 219_734_016
    assert chinchilla_tokens(REFERENCE) == 8_928_215_040, "as its author's run had it"
    router = 12 * 6 * 768
    assert flop_per_token(REFERENCE) == flop_per_token(ModelConfig()) + 6 * (12 * 8 * 768**2 + router)
    assert memory_gib(REFERENCE, 3) > memory_gib(ModelConfig(), 3) + 4


def test_published_shape_of_low_rank_tables() -> None:
    both = ModelConfig(embedding_rank=128)
    assert parameter_count(both) == 163_009_536 - 2 * (50_257 * (768 - 128) - 128 * 768)
    assert flop_per_token(both) == flop_per_token(ModelConfig()) - 6 * (50_257 * 640 - 2 * 128 * 768)


@pytest.mark.parametrize("config", [MIXED, *LOW, TIED, dataclasses.replace(MIXED, bias=False, embedding_rank=4)])
def test_counts_and_shapes_are_the_models_own(config: ModelConfig) -> None:
    model = build(config)
    state = model.unpadded_state()
    assert parameter_count(config) == model.parameter_count() == sum(each.numel() for each in state.values())
    assert expected_shapes(config) == {name: tuple(each.shape) for name, each in state.items()}


def test_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    """A missing one would stop data-parallel training, which waits for each gradient of each rank."""
    model = build(dataclasses.replace(MIXED, active_experts=1))
    for block in model.blocks:
        block.mlp.router.weight.data.zero_()  # topk of equal logits takes one expert for all tokens
    model(*batch(MIXED)).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if "experts." in name}
    assert all(each is not None for each in gradients.values())
    assert sum(bool(each.any()) for name, each in gradients.items() if each is not None and "up.weight" in name) == 2


def test_balance_is_one_where_all_are_used_alike_and_the_number_of_experts_where_one_takes_all() -> None:
    model = build(dataclasses.replace(MIXED, active_experts=1))
    mlp = model.blocks[0].mlp
    mlp.router.weight.data.zero_()
    mlp.router.weight.data[2, 0] = 1_000.0
    mlp(torch.ones(4, 8, 32))
    assert float(mlp.balance.detach()) == pytest.approx(5.0)
    mlp.router.weight.data[:5, :5] = 50 * torch.eye(5)
    mlp(torch.eye(32)[:5].repeat(4, 1)[None])
    assert float(mlp.balance.detach()) == pytest.approx(1.0, abs=1e-4)


def test_the_auxiliary_loss_moves_the_router_and_not_the_figure() -> None:
    spread, alone = build(MIXED), build(dataclasses.replace(MIXED, balance_loss=0.0))
    losses = [model(*batch(MIXED)) for model in (spread, alone)]
    assert float(losses[0].detach()) == float(losses[1].detach())
    for loss in losses:
        loss.backward()
    one, other = (model.blocks[0].mlp.router.weight.grad for model in (spread, alone))
    (expected,) = torch.autograd.grad(0.01 * _balance_again(alone), [alone.blocks[0].mlp.router.weight])
    torch.testing.assert_close(one - other, expected, rtol=1e-3, atol=1e-7)
    spread.eval()
    assert not torch.equal(balance_of(spread), torch.tensor(0.0))


def _balance_again(model: GPT) -> Tensor:
    model(*batch(MIXED))
    return balance_of(model)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("config", [MIXED, TIED], ids=["experts", "low rank"])
def test_training_resumes_where_it_was(config: ModelConfig, optimizer: str) -> None:
    train = TrainConfig(steps=4, optimizer=optimizer, learning_rate=1e-2)
    model = build(config)
    optimizers = build_optimizers(model, train)
    losses = [step(model, optimizers) for _ in range(2)]
    weights = {name: each.clone() for name, each in model.unpadded_state().items()}
    moments = {
        name: {key: value.clone() for key, value in entry.items()}
        for name, entry in state_by_name(model, optimizers).items()
    }
    losses += [step(model, optimizers) for _ in range(2)]
    assert losses[-1] < losses[0]
    again = build(config, seed=9)
    with torch.no_grad():
        again.load_unpadded_state(weights)
    optimizers = build_optimizers(again, train)
    load_state_by_name(again, optimizers, moments)
    assert [step(again, optimizers) for _ in range(2)] == losses[2:]


def step(model: GPT, optimizers: list[torch.optim.Optimizer]) -> float:
    loss = model(*batch(model.config))
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def test_recomputed_activations_change_no_gradient() -> None:
    plain, recomputed = build(MIXED), build(MIXED)
    recomputed.activation_checkpointing = True
    for model in (plain, recomputed):
        model(*batch(MIXED)).backward()
    assert plain.blocks[0].mlp.router.weight.grad.any()
    for one, other in itertools.zip_longest(plain.parameters(), recomputed.parameters()):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(("config", "name"), [(MIXED, "experts"), (LOW[0], "embedding_rank"), (TIED, "embedding_rank")])
def test_gpt2s_layout_refuses_them_by_name(config: ModelConfig, name: str) -> None:
    with pytest.raises(NotExpressibleError, match=rf"cannot express this model's {name}: .*--format safetensors"):
        read_shape(dataclasses.asdict(config))
    assert layout_name(config) == f"gptctl-gpt2+{name}"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (dataclasses.replace(MIXED, active_experts=6), "active_experts must be 1 to 5"),
        (dataclasses.replace(LOW[0], low_rank="head"), "low_rank must be"),
        (dataclasses.replace(LOW[0], tie_embeddings=True), "tables of one shape"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(config: ModelConfig, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        build(config)


def test_sampling_sees_the_same_model() -> None:
    for config in (MIXED, TIED):
        model = build(config).eval()
        ids, _ = batch(config)
        with torch.no_grad():
            torch.testing.assert_close(model.next_token_logits(ids), model(ids)[:, -1], rtol=1e-4, atol=1e-5)
            loss = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            assert float(loss.detach()) == pytest.approx(float(model(ids, ids).detach()), rel=1e-5)

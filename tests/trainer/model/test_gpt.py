"""The model: sizes, initialisation, the chunked loss against the textbook, and a padding that nobody sees."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.files.small_runs import TINY
from trainer.contract import ModelConfig
from trainer.model.gpt import GPT, chunked_cross_entropy, loss_and_gradient

SMALL = dataclasses.replace(TINY, n_embd=64, vocab_size=300)


def model_of(config: ModelConfig, seed: int = 0, **options: bool) -> GPT:
    torch.manual_seed(seed)
    return GPT(config, **options)


def ids_for(config: ModelConfig, batch: int = 3, time: int | None = None) -> torch.Tensor:
    shape = (batch, time or config.context_length)
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("tied", "count"), [(False, 163_009_536), (True, 124_412_160)])
def test_gpt2_small_has_the_published_number_of_parameters(tied: bool, count: int) -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(tie_embeddings=tied))
    assert model.parameter_count() == count
    assert sum(tensor.numel() for tensor in model.unpadded_state().values()) == count
    assert model.head.weight.shape == (50304, 768)


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_loss_is_that_of_a_uniform_guess(tied: bool) -> None:
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    ids = ids_for(config, batch=8)
    assert model_of(config)(ids, ids.roll(-1, 1)).item() == pytest.approx(math.log(300), rel=0.02)


def test_the_trap_of_tied_embeddings_with_the_frameworks_initialisation() -> None:
    config = dataclasses.replace(SMALL, tie_embeddings=True, init="torch")
    ids = ids_for(config, batch=8)
    assert model_of(config)(ids, ids.roll(-1, 1)).item() > 3 * math.log(300)


def test_gpt2_initialisation_has_the_published_spreads() -> None:
    config = dataclasses.replace(SMALL, n_embd=128, n_layer=8)
    state = model_of(config).unpadded_state()
    spread = {name: tensor.std().item() for name, tensor in state.items() if tensor.dim() == 2}
    residual = 0.02 / math.sqrt(2 * 8)
    for name, value in spread.items():
        inner = name.endswith(("attention_out.weight", "mlp_down.weight"))
        assert value == pytest.approx(residual if inner else 0.02, rel=0.05), name
    assert state["blocks.0.mlp_up.bias"].abs().max() == 0
    assert state["final_norm.weight"].unique().tolist() == [1.0]


@pytest.mark.parametrize("init", ["gpt2", "torch"])
@pytest.mark.parametrize(
    "change", [{"qkv_bias": True}, {"bias": False}, {"n_layer": 5}, {"tie_embeddings": True}, {"dropout": 0.1}]
)
def test_an_intervention_shares_the_initial_values_of_every_tensor_it_does_not_change(
    init: str, change: dict[str, Any]
) -> None:
    """Up to the scale of residual projections, which follows from the depth."""
    baseline = dataclasses.replace(SMALL, init=init)
    ours = model_of(baseline, seed=4).unpadded_state()
    theirs = model_of(dataclasses.replace(baseline, **change), seed=4).unpadded_state()
    other_seed = model_of(baseline, seed=5).unpadded_state()
    for name in ours.keys() & theirs.keys():
        scale = ours[name].std() / theirs[name].std() if "n_layer" in change and ours[name].dim() == 2 else 1.0
        torch.testing.assert_close(ours[name], theirs[name] * scale, rtol=1e-5, atol=1e-7)
        assert ours[name].dim() == 1 or not torch.equal(ours[name], other_seed[name])


def test_torch_initialisation_has_the_spreads_of_torchs_own_modules() -> None:
    config = dataclasses.replace(SMALL, n_embd=128, init="torch", qkv_bias=True)
    state = model_of(config).unpadded_state()
    assert state["token_embedding.weight"].std().item() == pytest.approx(1.0, rel=0.05)
    for name, fan_in in (("qkv", 128), ("attention_out", 128), ("mlp_down", 512)):
        for kind in ("weight", "bias"):
            tensor = state[f"blocks.0.{name}.{kind}"]
            bound = fan_in**-0.5
            assert tensor.abs().max().item() == pytest.approx(bound, rel=0.05) and tensor.abs().max() <= bound
            assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name
    assert state["blocks.0.mlp_norm.weight"].unique().tolist() == [1.0]


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 900),
    vocab_size=st.sampled_from([2, 300, 384, 50257]),
    scale=st.sampled_from([1.0, 65536.0]),
)
def test_the_chunked_loss_and_its_gradients_are_cross_entropy(tokens: int, vocab_size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 8, generator=generator).requires_grad_()
    weight = torch.randn(50304 if vocab_size > 384 else 384, 8, generator=generator).requires_grad_()
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    chunks = []

    def counted(rows: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        chunks.append(len(rows))
        return loss_and_gradient(rows, *rest)

    loss = chunked_cross_entropy(hidden, weight, targets, vocab_size, counted)
    ours = torch.autograd.grad(loss * scale, (hidden, weight))
    expected = F.cross_entropy((hidden @ weight[:vocab_size].T), targets)
    theirs = torch.autograd.grad(expected * scale, (hidden, weight))
    assert sum(chunks) == tokens
    assert max(chunks) * weight.shape[0] * 4 <= 80e6
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6 * scale)
    assert not ours[1][vocab_size:].any()


def test_without_targets_the_logits_have_no_padding_and_agree_with_the_loss() -> None:
    model, ids = model_of(SMALL), ids_for(SMALL)
    targets = ids.roll(-1, 1)
    logits = model(ids)
    assert logits.shape == (3, 32, 300)
    torch.testing.assert_close(F.cross_entropy(logits.flatten(0, 1), targets.flatten()), model(ids, targets))
    torch.testing.assert_close(model.next_token_logits(ids), logits[:, -1])


def test_later_tokens_do_not_change_earlier_predictions() -> None:
    model, ids = model_of(SMALL), ids_for(SMALL)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 300
    torch.testing.assert_close(model(ids)[:, :20], model(changed)[:, :20])
    assert not torch.allclose(model(ids)[:, 20:], model(changed)[:, 20:])


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    ids = ids_for(model.config)
    torch.manual_seed(9)  # the same dropout masks
    model(ids, ids.roll(-1, 1)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_activation_checkpointing_changes_memory_only() -> None:
    config = dataclasses.replace(SMALL, dropout=0.1)
    plain = gradients(model_of(config))
    recomputed = gradients(model_of(config, activation_checkpointing=True))
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


def test_dropout_acts_in_training_only() -> None:
    model, ids = model_of(dataclasses.replace(SMALL, dropout=0.5)), ids_for(SMALL)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_bf16_autocast_is_close_to_fp32() -> None:
    model, ids = model_of(SMALL), ids_for(SMALL)
    exact = model(ids, ids.roll(-1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids, ids.roll(-1, 1))
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=5e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_state_goes_out_unpadded_and_comes_back(tied: bool) -> None:
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    one, other, ids = model_of(config, seed=1), model_of(config, seed=2), ids_for(config)
    assert not torch.equal(one(ids), other(ids))
    state = {name: tensor.clone() for name, tensor in one.unpadded_state().items()}
    assert {tensor.shape[0] for name, tensor in state.items() if name in ("token_embedding.weight", "head.weight")} == {
        300
    }
    other.load_unpadded_state(state)
    assert torch.equal(one(ids), other(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.weight"), "tensor head.weight is missing"),
        (lambda state: state.update({"stranger": torch.zeros(1)}), "tensor stranger is not part of this model"),
        (lambda state: state.update({"head.weight": torch.zeros(5, 5)}), r"head.weight has shape \(5, 5\), expected"),
    ],
)
def test_weights_of_another_model_are_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    model = model_of(SMALL)
    state = dict(model.unpadded_state())
    change(state)
    with pytest.raises(ValueError, match=message):
        model.load_unpadded_state(state)


def test_more_tokens_than_the_context_are_refused() -> None:
    model = model_of(SMALL)
    assert model(ids_for(SMALL, time=32)).shape[1] == 32
    with pytest.raises(ValueError, match="33 tokens do not fit the model's context of 32"):
        model(ids_for(SMALL, time=33))


@pytest.mark.parametrize(
    ("change", "message"), [({"n_head": 5}, "n_embd 64 is not div"), ({"init": "xavier"}, "xavier")]
)
def test_shapes_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT(dataclasses.replace(SMALL, **change))

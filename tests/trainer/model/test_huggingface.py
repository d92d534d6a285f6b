"""The trainer's model against Hugging Face's GPT2LMHeadModel with the same weights: logits, loss and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

from trainer.contract import ModelConfig
from trainer.model.gpt import GPT

RELATIVE = 1e-5
TENSORS_OF_A_BLOCK = {
    "attention_norm": "ln_1",
    "qkv": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_up": "mlp.c_fc",
    "mlp_down": "mlp.c_proj",
}


def huggingface_name(name: str) -> str:
    """blocks.3.mlp_up.weight -> transformer.h.3.mlp.c_fc.weight"""
    top = {
        "token_embedding.weight": "transformer.wte.weight",
        "position_embedding.weight": "transformer.wpe.weight",
        "final_norm.weight": "transformer.ln_f.weight",
        "final_norm.bias": "transformer.ln_f.bias",
        "head.weight": "lm_head.weight",
    }
    if name in top:
        return top[name]
    _, layer, part, kind = name.split(".")
    return f"transformer.h.{layer}.{TENSORS_OF_A_BLOCK[part]}.{kind}"


def as_huggingface(name: str, tensor: Tensor) -> Tensor:
    """GPT-2's Conv1D keeps the matrices of a block transposed."""
    return tensor.T if name.startswith("blocks.") and tensor.dim() == 2 else tensor


def pair(config: ModelConfig) -> tuple[GPT, GPT2LMHeadModel]:
    """Both models with the same random weights, biases included, far enough from the initialisation to matter."""
    # Only now: transformers costs every worker seconds.
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(7)
    ours = GPT(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            noise = 0.05 * torch.randn_like(parameter)
            parameter.add_(ours.pad(name, ours.unpad(name, noise)))
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
        )
    )
    state = {huggingface_name(name): as_huggingface(name, t).clone() for name, t in ours.unpadded_state().items()}
    if config.tie_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    own_bias = {name for name in theirs.state_dict() if name.endswith("c_attn.bias")} - state.keys()
    for name in own_bias:
        state[name] = torch.zeros(3 * config.n_embd)
    theirs.load_state_dict(state, strict=True)
    return ours.train(), theirs.train()


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


SMALL: dict[str, ModelConfig] = {
    "untied": ModelConfig(257, 64, n_layer=3, n_head=4, n_embd=48),
    "tied": ModelConfig(257, 64, n_layer=3, n_head=4, n_embd=48, tie_embeddings=True),
    "qkv bias": ModelConfig(500, 64, n_layer=2, n_head=2, n_embd=64, qkv_bias=True, tie_embeddings=True),
    # At GPT-2's vocabulary and context two sequences take several chunks of the loss.
    "several chunks": ModelConfig(50257, 1024, n_layer=1, n_head=2, n_embd=16),
}
every_shape: Callable[..., pytest.MarkDecorator] = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())


@every_shape
def test_logits_equal(config: ModelConfig) -> None:
    ours, theirs = pair(config)
    ids = torch.randint(config.vocab_size, (2, config.context_length // 2))
    with torch.no_grad():
        difference = relative_difference(ours(ids), theirs(ids).logits)
        last = relative_difference(ours.next_token_logits(ids), theirs(ids).logits[:, -1])
    assert max(difference, last) < RELATIVE


@every_shape
def test_loss_and_gradients_equal(config: ModelConfig) -> None:
    ours, theirs = pair(config)
    ids = torch.randint(config.vocab_size, (2, config.context_length))
    loss = ours(ids[:, :-1], ids[:, 1:])
    loss.backward()
    expected = theirs(ids, labels=ids).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
    of_theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = as_huggingface(name, ours.unpad(name, parameter.grad))
        assert relative_difference(gradient, of_theirs[huggingface_name(name)].grad) < RELATIVE, name


def test_padded_rows_get_no_gradient() -> None:
    ours, _ = pair(SMALL["untied"])
    ids = torch.randint(257, (2, 64))
    ours(ids[:, :-1], ids[:, 1:]).backward()
    assert ours.head.weight.shape[0] == 384
    assert float(ours.head.weight.grad[257:].abs().max()) == 0.0
    assert float(ours.head.weight.grad[:257].abs().max()) > 0.0

"""A checkpoint's tensors and shape as Hugging Face's GPT2LMHeadModel has them: names, layout, config.json.

GPT-2's Conv1D stores a block's matrices transposed, and it always has biases: those the model lacks become zeros. It
must not import torch or transformers; numpy is enough.

Example::

    planned = as_gpt2(model, found, read)      # read("blocks.0.qkv.weight") -> array
    config = gpt2_config(model, end_of_text=50256)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from trainer.arithmetic import VOCABULARY_MULTIPLE, has_attention_out_bias, table_columns
from trainer.contract import ModelConfig
from trainer.tokens.tensor_file import READABLE, Array, PlannedTensor

TABLES = {"token_embedding.weight": "transformer.wte.weight", "head.weight": "lm_head.weight"}
"""Tensors with a row per token id."""
TOP = {
    **TABLES,
    "position_embedding.weight": "transformer.wpe.weight",
    "final_norm.weight": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
}
OF_A_BLOCK = {
    "attention_norm": "ln_1",
    "qkv": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_up": "mlp.c_fc",
    "mlp_down": "mlp.c_proj",
}


class StoredTensor(NamedTuple):
    """What a safetensors header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


class NotExpressibleError(ValueError):
    """A model that GPT2LMHeadModel cannot express, or weights that do not fit the model described beside them."""


def read_shape(described: object) -> ModelConfig:
    """The ModelConfig in a checkpoint's meta.json. Raises NotExpressibleError for an option that GPT-2 lacks."""
    if not isinstance(described, Mapping):
        raise NotExpressibleError("meta.json does not describe a model")
    known = {item.name for item in dataclasses.fields(ModelConfig)}
    for name in sorted(described.keys() - known):
        raise NotExpressibleError(f"GPT2LMHeadModel cannot express the model option {name} = {described[name]!r}")
    model = ModelConfig(**described)
    if options := beyond_gpt2(model):
        raise NotExpressibleError(
            f"GPT2LMHeadModel cannot express this model's {', '.join(options)}: export it with --format safetensors, "
            f"whose {layout_name(model)} layout keeps the trainer's tensors"
        )
    return model


def beyond_gpt2(model: ModelConfig) -> list[str]:
    """The options of this model that GPT-2 has no place for, sorted."""
    chosen = {"qk_norm": model.qk_norm, "relu2": model.activation == "relu2", "rope": model.rope}
    chosen |= {"embedding_rank": model.embedding_rank > 0, "experts": model.experts > 0}
    return sorted(name for name, on in {**chosen, "value_residual": model.value_residual}.items() if on)


def layout_name(model: ModelConfig) -> str:
    """What an export in the trainer's own tensors is called: `gptctl-gpt2`, with options `gptctl-gpt2+qk_norm+rope`."""
    return "+".join(["gptctl-gpt2", *beyond_gpt2(model)])


def expected_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this model has, by name."""
    width = model.n_embd
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (model.vocab_size, table_columns(model, "input")),
        **({} if model.rope else {"position_embedding.weight": (model.context_length, width)}),
        **{f"final_norm.{kind}": (width,) for kind in _kinds(model.bias)},
    }
    if not model.tie_embeddings:
        shapes["head.weight"] = (model.vocab_size, table_columns(model, "output"))
    if (inside := table_columns(model, "input")) != width:
        shapes["embedding_up.weight"] = (width, inside)
    if (outside := table_columns(model, "output")) != width:
        shapes["head_down.weight"] = (outside, width)
    for layer in range(model.n_layer):
        for part, (rows, columns) in _matrices(model).items():
            shapes[f"blocks.{layer}.{part}.weight"] = (rows, columns)
            biased = {"qkv": model.qkv_bias, "attention_out": has_attention_out_bias(model), "mlp.router": False}
            if biased.get(part, model.bias):
                shapes[f"blocks.{layer}.{part}.bias"] = (rows,)
        for part in ("attention_norm", "mlp_norm"):
            shapes.update({f"blocks.{layer}.{part}.{kind}": (width,) for kind in _kinds(model.bias)})
        if model.value_residual and layer:
            shapes[f"blocks.{layer}.value_mix"] = (1,)
    return shapes


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _matrices(model: ModelConfig) -> dict[str, tuple[int, int]]:
    width = model.n_embd
    mlp = {"mlp_up": (4 * width, width), "mlp_down": (width, 4 * width)}
    if model.experts:
        many = {f"mlp.experts.{number}.{part}": shape for number in range(model.experts) for part, shape in mlp.items()}
        mlp = {"mlp.router": (model.experts, width), **many}
    return {"qkv": (3 * width, width), "attention_out": (width, width), **mlp}


def missing_biases(model: ModelConfig) -> dict[str, int]:
    """GPT-2's biases that this model lacks, by GPT-2's name, with their length: exported as zeros."""
    everything = expected_shapes(dataclasses.replace(model, bias=True, qkv_bias=True, attention_out_bias=None))
    own = expected_shapes(model)
    return {gpt2_name(name): shape[0] for name, shape in everything.items() if name not in own}


def gpt2_name(name: str) -> str:
    """blocks.3.mlp_up.weight -> transformer.h.3.mlp.c_fc.weight"""
    if name in TOP:
        return TOP[name]
    _, layer, part, kind = name.split(".")
    return f"transformer.h.{layer}.{OF_A_BLOCK[part]}.{kind}"


def as_gpt2(
    model: ModelConfig, found: Mapping[str, StoredTensor], read: Callable[[str], Array]
) -> dict[str, PlannedTensor]:
    """All tensors under GPT-2's names, each read when its turn comes. `found` is what the file has.

    Padded vocabulary rows are omitted. Raises NotExpressibleError, naming the tensor that does not fit.
    """
    expected = expected_shapes(model)
    for name in sorted(expected.keys() ^ found.keys()):
        raise NotExpressibleError(f"tensor {name} is {'missing' if name in expected else 'not part of this model'}")
    for name, shape in expected.items():
        if found[name].shape not in (shape, padded(name, shape)):
            raise NotExpressibleError(f"tensor {name} has shape {found[name].shape}, expected {shape}")
        if found[name].dtype not in READABLE:
            raise NotExpressibleError(f"tensor {name} has type {found[name].dtype}; known: {', '.join(READABLE)}")
    tensors = {gpt2_name(name): _laid_out(name, shape, found[name].dtype, read) for name, shape in expected.items()}
    return {**tensors, **{name: _zeros(length) for name, length in missing_biases(model).items()}}


def padded(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with the rows that pad the vocabulary, for the tables that have such rows."""
    if name not in TABLES:
        return shape
    return (-(-shape[0] // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE, *shape[1:])


def _laid_out(name: str, shape: tuple[int, ...], dtype: str, read: Callable[[str], Array]) -> PlannedTensor:
    if name.startswith("blocks.") and len(shape) == 2:
        return PlannedTensor(dtype, shape[::-1], lambda: read(name).T)
    return PlannedTensor(dtype, shape, lambda: read(name)[: shape[0]])


def _zeros(length: int) -> PlannedTensor:
    return PlannedTensor("F32", (length,), lambda: np.zeros(length, dtype=np.float32))


def gpt2_config(model: ModelConfig, end_of_text: int | None, dtype: str = "float32") -> dict[str, object]:
    """config.json for transformers' AutoModel and AutoModelForCausalLM, without custom code. llama.cpp's converter
    reads `n_ctx`, GPT-2's old name of `n_positions`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.context_length,
        "n_ctx": model.context_length,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "attn_pdrop": model.dropout,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": model.tie_embeddings,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
        "use_cache": True,
    }

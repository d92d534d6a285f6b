"""A checkpoint as one GGUF file, which llama.cpp and programs on it load: GPT-2's architecture, by the package gguf.

The names and the order of numbers are those of llama.cpp's own converter for GPT2LMHeadModel: matrices as the trainer
keeps them, norms, biases and positions in fp32. Biases that the model lacks are zeros, since llama.cpp wants them all.

    write_gguf(Path("model.gguf"), model, tensors, vocabulary, "BF16", "quickstart")
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract import ModelConfig
from trainer.tokens.tensor_file import PlannedTensor, in_type
from trainer.weights.tokenizer_files import Vocabulary, byte_letters, is_gpt2_pattern, merges, spelled

NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
IN_FP32 = ("position_embd",)
NO_MERGE = "! !"
"""llama.cpp wants at least one merge. This one names no token, so it is undone: bytes stay bytes."""


class GgufError(ValueError):
    """The model cannot become a GGUF file. Says what to change."""


def write_gguf(
    path: Path,
    model: ModelConfig,
    tensors: Mapping[str, PlannedTensor],
    vocabulary: Vocabulary | None,
    *,
    dtype: str,
    name: str,
) -> None:
    """Writes the file, one tensor in memory at a time. `tensors` are GPT-2's (as_gpt2), with matrices transposed; dtype
    is F32, F16 or BF16. Raises GgufError, OSError."""
    gguf = _library()
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_name(name)
    writer.add_block_count(model.n_layer)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.n_embd)
    writer.add_feed_forward_length(4 * model.n_embd)
    writer.add_head_count(model.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(model.vocab_size)
    kinds = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
    writer.add_file_type(getattr(gguf.LlamaFileType, kinds[dtype]))
    _add_vocabulary(gguf, writer, model, vocabulary)
    planned = {gguf_name(key): _planned(key, tensor, dtype) for key, tensor in tensors.items()}
    for key, tensor in planned.items():
        kind = getattr(gguf.GGMLQuantizationType, tensor.dtype)
        writer.add_tensor_info(key, tensor.shape, np.dtype(np.uint16), tensor.size_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in planned.values():
        writer.write_tensor_data(np.ascontiguousarray(tensor.make()))
    writer.close()


def gguf_name(name: str) -> str:
    """transformer.h.3.mlp.c_fc.weight -> blk.3.ffn_up.weight"""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    layer, _, part = stem.removeprefix("transformer.h.").partition(".")
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def _planned(name: str, tensor: PlannedTensor, dtype: str) -> PlannedTensor:
    """In the type that llama.cpp wants it in. A block's matrices turn back: GPT-2's Conv1D has them transposed."""
    flat = len(tensor.shape) == 1 or gguf_name(name).startswith(IN_FP32)
    chosen = in_type(tensor, "F32" if flat else dtype)
    if len(tensor.shape) == 2 and name.startswith("transformer.h."):
        return PlannedTensor(chosen.dtype, chosen.shape[::-1], lambda: chosen.make().T)
    return chosen


def _add_vocabulary(gguf: Any, writer: Any, model: ModelConfig, vocabulary: Vocabulary | None) -> None:
    """Every id's text. Raises GgufError for a tokenizer that llama.cpp cuts text otherwise for."""
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    if vocabulary.pattern is not None and not is_gpt2_pattern(vocabulary.pattern):
        raise GgufError(
            f"gptctl writes GGUF with the tokenizers gpt2 and bytes, and this model has {vocabulary.name}: "
            "give --tokenizer none, or convert an export of --format hf with llama.cpp's convert_hf_to_gguf.py"
        )
    letters = byte_letters()
    texts = {rank: spelled(token, letters) for token, rank in vocabulary.ranks.items()}
    marks = {rank: mark for mark, rank in vocabulary.special.items()}
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    every = range(model.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(rank) or marks.get(rank) or f"[PAD{rank}]" for rank in every])
    writer.add_token_types([normal if rank in texts else control if rank in marks else unused for rank in every])
    pairs = [f"{spelled(left, letters)} {spelled(right, letters)}" for left, right in merges(vocabulary.ranks)]
    writer.add_token_merges(pairs or [NO_MERGE])
    writer.add_add_bos_token(False)
    if vocabulary.end_of_text is not None:
        writer.add_bos_token_id(vocabulary.end_of_text)
        writer.add_eos_token_id(vocabulary.end_of_text)
        writer.add_pad_token_id(vocabulary.end_of_text)


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError:
        raise GgufError("--format gguf needs the package gguf: pip install 'gptctl[gguf]'") from None

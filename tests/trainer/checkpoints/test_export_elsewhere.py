"""An export in other programs' hands: llama.cpp's file read by its own library, batches, types, quiet pipelines."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from safetensors.torch import load_file

from tests.trainer.checkpoints.test_export import SHAPES, export, grown
from trainer.checkpoints.checkpoint import load_model
from trainer.run_files import MODEL_FILE
from trainer.tokens.tensor_file import PlannedTensor, in_type
from trainer.weights.gpt2_layout import gpt2_config


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """What gguf's own reader finds: values by key, tensors by name, as fp32."""
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {each.name: gguf.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    return values, tensors


@pytest.mark.parametrize("shape", SHAPES)
def test_gguf_gives_the_trainers_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = SHAPES[shape]
    checkpoint = grown(tmp_path / "run", config)
    done = export(capsys, tmp_path / "run", "--format", "gguf", "--to", tmp_path / "out", "--tokenizer", "none")
    assert {"model.gguf"} == set(done["files"])
    values, tensors = read(tmp_path / "out" / "model.gguf")
    assert (values["general.architecture"], values["gpt2.context_length"]) == ("gpt2", config.context_length)
    assert ("output.weight" in tensors) is not config.tie_embeddings
    assert all(f"blk.0.{part}.bias" in tensors for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"))
    # transformers takes sizes of a GGUF without tokenizer from its defaults; the weights are what counts here.
    described = GPT2Config(**gpt2_config(config, None))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", config=described).eval()
    ids = torch.randint(config.vocab_size, (2, config.context_length), generator=torch.Generator().manual_seed(1))
    ours, _ = load_model(checkpoint, torch.device("cpu"))
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours(ids), atol=2e-5)


def test_gguf_has_the_tokenizer_and_the_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = grown(tmp_path / "run")
    export(capsys, tmp_path / "run", "--format", "gguf", "--dtype", "bf16", "--to", tmp_path / "out")
    values, tensors = read(tmp_path / "out" / "model.gguf")
    assert values["tokenizer.ggml.model"] == "gpt2" and values["tokenizer.ggml.pre"] == "gpt-2"
    assert values["tokenizer.ggml.tokens"][ord("a")] == "a" and len(values["tokenizer.ggml.tokens"]) == 257
    assert values["tokenizer.ggml.eos_token_id"] == 256
    stored = load_file(checkpoint / MODEL_FILE)["blocks.0.mlp_up.weight"]
    assert np.array_equal(tensors["blk.0.ffn_up.weight"], stored.bfloat16().float().numpy())
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_up.bias"], kinds["position_embd.weight"]) == (
        "BF16", "F32", "F32",
    )  # fmt: skip


def test_a_batch_of_texts_is_written_as_each_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    grown(tmp_path / "run")
    export(capsys, tmp_path / "run", "--to", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    texts = ["def f(", "x", "import os\nimp"]
    wish: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    alone = [model.generate(**tokenizer([text], return_tensors="pt"), **wish)[0, -6:].tolist() for text in texts]
    together = model.generate(**tokenizer(texts, return_tensors="pt", padding=True), **wish)[:, -6:].tolist()
    assert together == alone


def test_a_pipeline_says_nothing_of_lengths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import pipeline

    grown(tmp_path / "run")
    export(capsys, tmp_path / "run", "--to", tmp_path / "out")
    write = pipeline("text-generation", model=str(tmp_path / "out"))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    write("def ", max_new_tokens=4)
    logger.removeHandler(caplog.handler)
    assert [each.getMessage() for each in caplog.records if "max_length" in each.getMessage()] == []


def test_bf16_and_what_llamas_converter_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = grown(tmp_path / "run")
    export(capsys, tmp_path / "run", "--dtype", "bf16", "--to", tmp_path / "out")
    found = load_file(tmp_path / "out" / MODEL_FILE)
    stored = load_file(checkpoint / MODEL_FILE)["blocks.0.qkv.weight"]
    assert torch.equal(found["transformer.h.0.attn.c_attn.weight"], stored.T.bfloat16())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"] and config["torch_dtype"] == "bfloat16"


@given(some.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32)))
def test_bf16_is_rounded_as_torch_does(values: Any) -> None:
    made = in_type(PlannedTensor("F32", values.shape, lambda: values), "BF16").make()
    want = torch.from_numpy(values.copy()).bfloat16()
    got = torch.from_numpy(made.astype(np.int16)).view(torch.bfloat16)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~got.isnan()], want[~want.isnan()])

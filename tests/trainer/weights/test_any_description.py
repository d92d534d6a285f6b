"""What a foreign model says about itself may be anything: it is imported, or refused in one line and leaves nothing."""

import io
import json
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.support.files.any_json import anything
from trainer.contract import ModelConfig
from trainer.import_model import main
from trainer.weights.gpt2_layout import expected_shapes, gpt2_name
from trainer.weights.weight_files import INDEX

SHAPE = ModelConfig(vocab_size=9, context_length=4, n_layer=1, n_head=2, n_embd=4, qkv_bias=True, tie_embeddings=True)
KEYS = {
    "config.json": ("architectures", "add_cross_attention", "model_type", "activation_function", "n_head", "n_inner",
                    "tie_word_embeddings", "resid_pdrop", "attn_pdrop", "layer_norm_epsilon", "cfg"),
    "gptctl.json": ("model", "files", "tokenizer", "step", "lineage"),
    "meta.json": ("model", "tokenizer", "step", "global_step", "lineage"),
    "model.json": ("emb_dim", "n_heads", "drop_rate", "tie_weights", "moe"),
    INDEX: ("weight_map",),
}  # fmt: skip
PLACES = [(file, key) for file, keys in KEYS.items() for key in keys]


def tensors(layout: str) -> dict[str, torch.Tensor]:
    shapes = expected_shapes(SHAPE)
    if layout == "own":
        return {name: torch.ones(shape) for name, shape in shapes.items()}
    if layout == "reference":
        return {"tok_emb.weight": torch.ones(9, 4), "pos_emb.weight": torch.ones(4, 4)}
    return {gpt2_name(name): torch.ones(shape[::-1] if "blocks" in name and len(shape) == 2 else shape)
            for name, shape in shapes.items()}  # fmt: skip


numbers = st.sampled_from([0, -1, 1 << 63, 10**400, 0.5, True, "1", None])
models = st.fixed_dictionaries({"vocab_size": st.just(9), "n_embd": st.just(4)}, optional={
    name: numbers for name in ("n_layer", "n_head", "experts", "embedding_rank", "dropout", "rope", "bias", "init", "x")
})  # fmt: skip


@settings(max_examples=150, deadline=None)
@example(layout="gpt2", place=(INDEX, "weight_map"), value={"": "x" * 70_000})
@given(layout=st.sampled_from(["gpt2", "own", "reference"]), place=st.sampled_from(PLACES), value=anything | models)
def test_any_description_is_taken_or_refused(layout: str, place: tuple[str, str], value: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, to = Path(name) / "theirs", Path(name) / "ours"
        folder.mkdir()
        save_file(tensors(layout), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_head": 2}))
        (folder / place[0]).write_text(json.dumps({place[1]: value}))
        with redirect_stderr(io.StringIO()) as said, redirect_stdout(io.StringIO()):
            code = main([str(folder), "--to", str(to), "--tokenizer", "none"])
        assert (code, to.exists()) in ((0, True), (1, False))
        assert said.getvalue().count("\n") == code
        assert len(said.getvalue()) < 1000


@pytest.mark.parametrize("shape", [[-2, -2], [2.5], "ab", [1 << 70], None])
def test_a_header_that_lies_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: Any) -> None:
    header = json.dumps({"wte.weight": {"dtype": "F32", "data_offsets": [0, 16], "shape": shape}}).encode()
    raw = len(header).to_bytes(8, "little") + header + bytes(16)
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert main([str(tmp_path), "--to", str(tmp_path / "x")]) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_adapters_without_their_model_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    save_file({name: torch.ones(2, 4)}, tmp_path / "adapter_model.safetensors")
    assert main([str(tmp_path), "--to", str(tmp_path / "x")]) == 1
    assert "adapters without their model: merge them" in capsys.readouterr().err

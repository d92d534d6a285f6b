"""Weights in: every layout as this trainer's tensors, and the same logits as the library that wrote them."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from tests.support.files.small_runs import TINY, write_run
from trainer.checkpoints.checkpoint import load_model
from trainer.checkpoints.manifest import CheckpointError, verify
from trainer.contract import ModelConfig
from trainer.export import main as export
from trainer.import_model import main as import_model
from trainer.model.gpt import GPT
from trainer.run_files import MODEL_FILE
from trainer.weights.gpt2_layout import gpt2_name

CPU = torch.device("cpu")
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32}


def imported(capsys: pytest.CaptureFixture[str], source: Path, to: Path, *more: str) -> dict[str, Any]:
    assert import_model([str(source), "--to", str(to), *more]) == 0, capsys.readouterr().err
    verify(to)
    line: dict[str, Any] = json.loads(capsys.readouterr().out)
    return line


def refused(capsys: pytest.CaptureFixture[str], source: Path, to: Path, *more: str) -> str:
    assert import_model([str(source), "--to", str(to), *more]) == 1
    assert not to.exists()
    return capsys.readouterr().err


def logits(folder: Path, ids: Tensor) -> Tensor:
    model, _ = load_model(folder, CPU)
    with torch.no_grad():
        return model(ids)


def hugging_face(folder: Path, *, tied: bool, **changes: object) -> Any:
    """A GPT-2 with random weights, biases included, far from their initialisation."""
    # Only now: transformers costs every worker seconds.
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=257, n_positions=32, n_layer=2, n_head=2, n_embd=32, tie_word_embeddings=tied,
        resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1, attn_implementation="eager", **changes,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", ["safetensors", "pickle", "shards", "bf16"])
def test_a_gpt2_of_transformers_has_its_logits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tied: bool, prefix: bool, kind: str
) -> None:
    theirs = hugging_face(tmp_path / "hf", tied=tied)
    file = tmp_path / "hf" / "model.safetensors"
    state = load_file(file)
    assert ("lm_head.weight" in state) is not tied
    names = {name: name if prefix else name.removeprefix("transformer.") for name in state}
    state = {names[name]: tensor.clone() for name, tensor in state.items()}
    state[names["transformer.wte.weight"][:-10] + "h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()  # a mask
    if kind == "bf16":
        state = {name: tensor.bfloat16() for name, tensor in state.items()}
        theirs.load_state_dict({name: tensor.bfloat16().float() for name, tensor in theirs.state_dict().items()})
    file.unlink()
    if kind == "pickle":
        torch.save(state, tmp_path / "hf" / "pytorch_model.bin")
    elif kind == "shards":
        halves = [dict(list(state.items())[at::2]) for at in (0, 1)]
        places = {}
        for number, half in enumerate(halves):
            save_file(half, tmp_path / "hf" / f"model-{number}.safetensors")
            places |= dict.fromkeys(half, f"model-{number}.safetensors")
        (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        save_file(state, file)
    line = imported(capsys, tmp_path / "hf", tmp_path / "in" / "step-000000")
    assert line["layout"] == "Hugging Face GPT-2"
    assert line["model"]["tie_embeddings"] is tied
    assert (line["model"]["dropout"], line["tokenizer"]) == (0.1, "bytes")
    assert line["dropped"] == ["h.0.attn.bias"]
    ids = torch.randint(257, (3, 32))
    with torch.no_grad():
        expected = theirs(ids).logits
    assert (logits(tmp_path / "in" / "step-000000", ids) - expected).abs().max() < 1e-6 * max(1, expected.abs().max())
    assert torch.equal(logits(tmp_path / "hf", ids), logits(tmp_path / "in" / "step-000000", ids)), "read in place"


@pytest.mark.parametrize("kind", ["hf", "safetensors"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": True}, {"qkv_bias": True}, {"bias": False}, {"bias": False, "tie_embeddings": True}],
    ids=str,
)
def test_an_export_comes_back_with_identical_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, changes: dict[str, Any]
) -> None:
    config = dataclasses.replace(TINY, **changes)
    checkpoint = write_run(tmp_path / "run", config)
    assert export([str(checkpoint), "--format", kind, "--to", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    line = imported(capsys, tmp_path / "out", tmp_path / "back")
    before, after = load_file(checkpoint / MODEL_FILE), load_file(tmp_path / "back" / MODEL_FILE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ModelConfig(**line["model"]) == config
    assert (line["step"], line["tokenizer"]) == (7, "bytes")


def test_a_damaged_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_run(tmp_path / "run")
    assert export([str(checkpoint), "--format", "hf", "--to", str(tmp_path / "out")]) == 0
    file = tmp_path / "out" / MODEL_FILE
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    assert "damaged" in refused(capsys, tmp_path / "out", tmp_path / "in")


class Reference(nn.Module):
    """The reference trainer's model as far as its names go."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.n_embd
        self.tok_emb = nn.Embedding(config.vocab_size, width)
        self.pos_emb = nn.Embedding(config.context_length, width)
        self.trf_blocks = nn.Sequential(*[_block(config) for _ in range(config.n_layer)])
        self.final_norm = _norm(width)
        self.out_head = nn.Linear(width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.out_head.weight = self.tok_emb.weight


def _norm(width: int) -> nn.Module:
    norm = nn.Module()
    norm.scale, norm.shift = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))
    return norm


def _block(config: ModelConfig) -> nn.Module:
    width, block, attention, mlp = config.n_embd, nn.Module(), nn.Module(), nn.Module()
    for name in ("W_query", "W_key", "W_value"):
        setattr(attention, name, nn.Linear(width, width, bias=config.qkv_bias))
    attention.out_proj = nn.Linear(width, width)
    attention.register_buffer("mask", torch.triu(torch.ones(config.context_length, config.context_length), diagonal=1))
    mlp.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
    block.att, block.ff, block.norm1, block.norm2 = attention, mlp, _norm(width), _norm(width)
    return block


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("kind", ["checkpoint of a run", "pickle", "of the Hub"])
def test_the_reference_trainers_tensors_are_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tied: bool, qkv_bias: bool, kind: str
) -> None:
    torch.manual_seed(2)
    config = dataclasses.replace(TINY, tie_embeddings=tied, qkv_bias=qkv_bias, init="torch", dropout=0.1)
    model, run = Reference(config), tmp_path / "runs" / "one"
    described = {
        "vocab_size": 257, "context_length": 32, "emb_dim": 32, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1,
        "qkv_bias": qkv_bias, **({"tie_weights": True} if tied else {}),
    }  # fmt: skip
    folder = run / "checkpoints" / "20260101Z000000-iteration-9"
    folder.mkdir(parents=True)
    (run / "model.json").write_text(json.dumps(described))
    (folder / "meta.json").write_text('{"global_step": 9}')
    (run / "checkpoints" / "latest").symlink_to(folder.name)
    if kind == "pickle":
        torch.save(
            {"model_state_dict": model.state_dict(), "optimizer_state_dict": {"state": {}}}, folder / "model.pth"
        )
    else:
        save_model(model, str(folder / "model.safetensors"))
    line = imported(capsys, run, tmp_path / "in")
    assert ModelConfig(**line["model"]) == config
    assert line["step"] == 10
    assert len(line["dropped"]) == config.n_layer, "a mask a block"
    ours, theirs = load_file(tmp_path / "in" / MODEL_FILE), model.state_dict()
    block = "trf_blocks.1"
    joined = [theirs[f"{block}.att.{each}.weight"] for each in ("W_query", "W_key", "W_value")]
    assert torch.equal(ours["blocks.1.qkv.weight"], torch.cat(joined))
    assert ("blocks.1.qkv.bias" in ours) is qkv_bias
    assert torch.equal(ours["blocks.1.attention_out.weight"], theirs[f"{block}.att.out_proj.weight"])
    assert torch.equal(ours["blocks.1.mlp_down.bias"], theirs[f"{block}.ff.layers.2.bias"])
    assert torch.equal(ours["blocks.1.mlp_norm.weight"], theirs[f"{block}.norm2.scale"])
    assert torch.equal(ours["final_norm.bias"], theirs["final_norm.shift"])
    assert torch.equal(ours["token_embedding.weight"], theirs["tok_emb.weight"])
    assert ("head.weight" in ours) is not tied


def test_nanogpts_tensors_are_ours_if_you_accept_its_gelu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    config = dataclasses.replace(TINY, qkv_bias=True, tie_embeddings=True)
    ours = GPT(config).unpadded_state()
    state = {f"_orig_mod.{gpt2_name(name)}": tensor.clone() for name, tensor in ours.items()}
    state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
    arguments = {**SHAPE, "block_size": 32, "bias": True, "vocab_size": 257, "dropout": 0.0}
    torch.save({"model": state, "model_args": arguments, "iter_num": 5}, tmp_path / "ckpt.pt")
    assert "its GELU is the exact one" in refused(capsys, tmp_path / "ckpt.pt", tmp_path / "in")
    line = imported(capsys, tmp_path / "ckpt.pt", tmp_path / "in", "--accept-tanh-gelu")
    assert line["layout"] == "nanoGPT"
    assert ModelConfig(**line["model"]) == config
    found = load_file(tmp_path / "in" / MODEL_FILE)
    assert all(torch.equal(found[name], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "model_type = 'llama' cannot be expressed"),
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
        ({"activation_function": "gelu"}, "--accept-tanh-gelu"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"n_inner": 64}, "n_inner = 64"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"attn_pdrop": 0.2}, "one dropout rate"),
        ({"n_head": None}, "--n-head"),
        ({"n_head": 5}, "does not divide into 5 heads"),
        ({"tie_word_embeddings": True}, "says a tied head"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    hugging_face(tmp_path / "hf", tied=False)
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert said in refused(capsys, tmp_path / "hf", tmp_path / "in")


@pytest.mark.parametrize("broken", ["missing", "extra", "shape", "cut", "gguf", "nothing", "another"])
def test_broken_files_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str) -> None:
    hugging_face(tmp_path / "hf", tied=True)
    file = tmp_path / "hf" / "model.safetensors"
    state, source = load_file(file), tmp_path / "hf"
    name = "transformer.h.1.mlp.c_fc.weight"
    if broken == "missing":
        del state[name]
    elif broken == "extra":
        state["transformer.h.1.crossattention.c_attn.weight"] = torch.ones(3)
    elif broken == "shape":
        state[name] = state[name].T.contiguous()
    elif broken == "another":
        state = {"model.layers.0.self_attn.q_proj.weight": torch.ones(3, 3)}
    save_file(state, file)
    if broken == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    if broken in ("gguf", "nothing"):
        file.unlink()
    if broken == "gguf":
        (source / "model.gguf").write_bytes(b"GGUF")
    expected = {
        "missing": "tensor h.1.mlp.c_fc.weight is missing", "extra": "crossattention", "shape": "expected (32, 128)",
        "cut": "cut off", "gguf": "export with --format hf", "nothing": "no weights are there",
        "another": "GPT2LMHeadModel (tensors model.layers.0.self_attn.q_proj.weight) is not a GPT-2",
    }  # fmt: skip
    assert expected[broken] in refused(capsys, source, tmp_path / "in")


class Dangerous:
    """Runs code where a pickle is trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("ran").touch, ())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_runs_no_code_and_no_advice_is_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"wte.weight": torch.ones(2, 2), "more": Dangerous()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"x": Dangerous()}))
    (tmp_path / "c.pt").write_bytes(b"\x80\x02garbage")
    for name in ("a.pt", "b.pt", "c.pt"):
        said = refused(capsys, tmp_path / name, tmp_path / "in")
        assert "refused" in said
        assert "weights_only" not in said and "torch." not in said
        with pytest.raises(CheckpointError, match="refused"):
            load_model(tmp_path / name, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hugging_face(tmp_path / "hf", tied=True)
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps({"!": 0, '"': 1}))
    assert "its vocabulary has" in refused(capsys, tmp_path / "hf", tmp_path / "in")
    line = imported(capsys, tmp_path / "hf", tmp_path / "in", "--tokenizer", "none")
    assert line["tokenizer"] == "none"

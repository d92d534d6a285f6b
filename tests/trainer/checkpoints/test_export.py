"""The export against the library that will load it: the same logits by plain Auto classes, offline, no custom code."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiktoken._educational import bpe_train
from tokenizers import Tokenizer

from tests.support.files.small_runs import TINY, python_source, write_run
from tests.support.files.training_runs import REPOSITORY
from trainer.checkpoints.checkpoint import load_model, write_manifest, write_weights
from trainer.checkpoints.manifest import read_manifest
from trainer.export import RECORD, main
from trainer.model.gpt import GPT, padded_vocabulary
from trainer.run_files import MODEL_FILE
from trainer.weights.tokenizer_files import END_OF_TEXT, Vocabulary, tokenizer_files

SHAPES = {
    "untied": TINY,
    "tied": dataclasses.replace(TINY, tie_embeddings=True),
    "with qkv bias": dataclasses.replace(TINY, qkv_bias=True),
    "without any bias": dataclasses.replace(TINY, bias=False),
    "odd vocabulary, dropout": dataclasses.replace(TINY, vocab_size=1001, dropout=0.1, tie_embeddings=True),
}
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k_base": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s"
    ),
}
"""tiktoken's own, of the encodings of these names."""
LIBRARY = """
import json, sys
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
text = "für\\n  def f(x): 漢字"
print(json.dumps({
    "head": type(AutoModelForCausalLM.from_pretrained(folder)).__name__,
    "body": type(AutoModel.from_pretrained(folder)).__name__,
    "ids": tokenizer(text + tokenizer.eos_token).input_ids,
    "round trip": tokenizer.decode(tokenizer(text).input_ids) == text,
    "longest": tokenizer.model_max_length,
    "written": pipeline("text-generation", model=folder)("def ", max_new_tokens=8)[0]["generated_text"],
    "foreign code": [name for name in sys.modules if name.startswith("transformers_modules")],
}))
"""
WITHOUT = """
import sys
for name in ("torch", "transformers", "tiktoken", "huggingface_hub"):
    sys.modules[name] = None      # an import of it raises ImportError
from trainer.export import main
sys.exit(main(sys.argv[1:]))
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from trainer.export import main

def hook(event, arguments):      # before the rename is made
    if event == "os.rename" and Path(arguments[1]).name == "out":
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    # Only now, here and below: transformers costs every worker seconds.
    from transformers.utils import logging

    logging.disable_progress_bar()


def grown(folder: Path, config: Any = TINY) -> Path:
    """A checkpoint of a model whose biases are no zeros any more, as after some training."""
    checkpoint = write_run(folder, config)
    torch.manual_seed(11)
    weights = {name: t + 0.05 * torch.randn_like(t) for name, t in load_file(checkpoint / MODEL_FILE).items()}
    replace_weights(checkpoint, weights)
    return checkpoint


def replace_weights(checkpoint: Path, weights: Mapping[str, torch.Tensor]) -> None:
    files = read_manifest(checkpoint)
    files[MODEL_FILE] = write_weights(checkpoint / MODEL_FILE, dict(weights))
    write_manifest(checkpoint, files)


def replace_meta(checkpoint: Path, **changes: Any) -> None:
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["model"].update(changes)
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    files = read_manifest(checkpoint)
    del files["meta.json"]
    write_manifest(checkpoint, {**files, "meta.json": entry(checkpoint / "meta.json")})


def entry(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def export(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([str(argument) for argument in arguments]) == 0
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that says why."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_trainers_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str) -> None:
    from transformers import AutoModelForCausalLM

    config = SHAPES[shape]
    checkpoint = grown(tmp_path / "run", config)
    said = export(capsys, checkpoint, "--to", tmp_path / "out")
    ours, _ = load_model(checkpoint, torch.device("cpu"))
    theirs, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: value for key, value in loading.items() if value} == {}
    ids = torch.randint(config.vocab_size, (4, config.context_length))
    with torch.no_grad():
        expected, found = ours(ids), theirs(ids).logits
    difference = float((expected - found).abs().max())
    print(f"{shape}: largest difference of a logit {difference:.2e} of {float(expected.abs().max()):.2f}")
    assert found.shape == expected.shape
    assert difference <= 1e-5 * float(expected.abs().max())
    assert (theirs.lm_head.weight is theirs.transformer.wte.weight) == config.tie_embeddings
    assert said["parameters"] == ours.parameter_count() == theirs.num_parameters() - said["zero_biases"]
    held = load_file(tmp_path / "out" / MODEL_FILE)
    assert ("lm_head.weight" in held) == (not config.tie_embeddings)
    assert held["transformer.wte.weight"].shape[0] == config.vocab_size
    assert bool(held["transformer.h.0.attn.c_attn.bias"].any()) == config.qkv_bias


@pytest.mark.nightly
def test_the_librarys_own_classes_and_pipeline_load_it_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(capsys, grown(tmp_path / "run"), "--to", tmp_path / "out")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(tmp_path / "out")],
        capture_output=True, text=True, env=offline, cwd=tmp_path, check=False, timeout=480,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["head"], told["body"], told["longest"]) == ("GPT2LMHeadModel", "GPT2Model", TINY.context_length)
    assert told["ids"] == [*"für\n  def f(x): 漢字".encode(), 256]
    assert told["round trip"]
    assert told["written"].startswith("def ")
    assert told["foreign code"] == []


def test_the_librarys_own_trainer_goes_on_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    export(capsys, write_run(tmp_path / "run"), "--to", tmp_path / "out")
    text = python_source(20_000)
    pieces = [list(text[at : at + 32]) for at in range(0, len(text) - 32, 32)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    settings_ = TrainingArguments(
        str(tmp_path / "tuned"), max_steps=20, per_device_train_batch_size=8, learning_rate=5e-3, logging_steps=1,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", seed=1,
    )  # fmt: skip
    trainer = Trainer(model, settings_, train_dataset=[{"input_ids": piece, "labels": piece} for piece in pieces])
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 20
    assert sum(losses[-3:]) / 3 < losses[0] - 0.5
    trainer.save_model(str(tmp_path / "tuned"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    ids = torch.tensor(pieces[:4])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_no_torch_is_needed(tmp_path: Path) -> None:
    checkpoint = grown(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(checkpoint), "--to", str(tmp_path / "out")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@cache
def learned(pattern: str) -> tiktoken.Encoding:
    """A small vocabulary that tiktoken's own teaching code learns from Python source, with that pattern."""
    ranks = bpe_train(python_source(9_000).decode() + "\naaaa aaa 1234567 ''", 400, PATTERNS[pattern], visualise=None)
    return tiktoken.Encoding(
        "small", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
    )


@cache
def converted(pattern: str) -> Tokenizer:
    encoding = learned(pattern)
    vocabulary = Vocabulary(pattern, encoding._pat_str, encoding._mergeable_ranks, encoding._special_tokens)
    return Tokenizer.from_str(tokenizer_files(vocabulary, 32)["tokenizer.json"])


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.text("aes'SLl 12\n\r\t_(self)", max_size=60)))
def test_a_converted_vocabulary_cuts_text_as_tiktoken_does(pattern: str, text: str) -> None:
    ids = converted(pattern).encode(text).ids
    assert ids == learned(pattern).encode_ordinary(text)
    assert converted(pattern).decode(ids, skip_special_tokens=False) == text


def test_marks_beyond_the_models_vocabulary_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_run(tmp_path / "run", dataclasses.replace(TINY, vocab_size=256))
    export(capsys, checkpoint, "--to", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] is None
    assert END_OF_TEXT not in (tmp_path / "out" / "tokenizer.json").read_text()


def test_padded_rows_are_stripped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = grown(tmp_path / "run")
    weights = load_file(checkpoint / MODEL_FILE)
    model = GPT(TINY)
    replace_weights(checkpoint, {name: model.pad(name, tensor).clone() for name, tensor in weights.items()})
    export(capsys, checkpoint, "--to", tmp_path / "out")
    held = load_file(tmp_path / "out" / MODEL_FILE)
    assert padded_vocabulary(257) == 384
    assert torch.equal(held["lm_head.weight"], weights["head.weight"])


def test_plain_safetensors_are_the_trainers_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = grown(tmp_path / "run")
    said = export(capsys, checkpoint, "--format", "safetensors", "--to", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == sorted([RECORD, MODEL_FILE, "meta.json"])
    assert (tmp_path / "out" / MODEL_FILE).read_bytes() == (checkpoint / MODEL_FILE).read_bytes()
    assert said["files"][MODEL_FILE]["sha256"] == said["checkpoint_sha256"]


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = grown(tmp_path / "run"), tmp_path / "deep" / "out"
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("about")
    export(capsys, checkpoint, "--to", out, "--companions", tmp_path / "card")
    (out.parent / ".tmp-out").mkdir()  # as a killed export leaves it
    export(capsys, checkpoint, "--to", out, "--format", "safetensors")
    assert sorted(os.listdir(out)) == sorted([RECORD, MODEL_FILE, "meta.json"])
    assert os.listdir(out.parent) == ["out"]

    (out / "notes.txt").write_text("mine")
    before = listing(out)
    assert "not part of it (notes.txt)" in refused(capsys, checkpoint, "--to", out)
    assert listing(out) == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    assert "neither empty nor an export (thesis.tex)" in refused(capsys, checkpoint, "--to", foreign)
    assert "is not a folder" in refused(capsys, checkpoint, "--to", foreign / "thesis.tex")
    assert listing(foreign) == {"thesis.tex": b"mine"}


def test_an_export_killed_between_its_renames_keeps_the_older_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = grown(tmp_path / "run"), tmp_path / "out"
    export(capsys, checkpoint, "--to", out)
    older = listing(out)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(checkpoint), "--to", str(out), "--format", "safetensors"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    assert "no tokenizer is called" in refused(capsys, checkpoint, "--to", out, "--tokenizer", "nonesuch")
    assert listing(out) == older
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]
    export(capsys, checkpoint, "--to", out, "--format", "safetensors")
    assert sorted(os.listdir(out)) == sorted([RECORD, MODEL_FILE, "meta.json"])
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]


def test_a_disk_that_is_too_small_is_refused_with_both_figures(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, grown(tmp_path / "run"), "--to", small_disk / "out")
    assert re.search(r"needs 0\.03 GB, and its disk has 0\.00 GB free", message)
    assert os.listdir(small_disk) == []


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint to spoil; whatever is refused leaves no folder behind."""
    yield grown(tmp_path / "run")
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_damaged_weights_are_not_exported(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((broken / MODEL_FILE).read_bytes())
    data[-1] ^= 1
    (broken / MODEL_FILE).write_bytes(data)
    assert "does not have the sha256 of its manifest" in refused(capsys, broken, "--to", tmp_path / "out")


def test_what_gpt2_cannot_express_is_named(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_meta(broken, experts=8)
    assert "cannot express this model's experts" in refused(capsys, broken, "--to", tmp_path / "out")


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("rope", True, "rope"),
        ("qk_norm", True, "qk_norm"),
        ("activation", "relu2", "relu2"),
        ("value_residual", True, "value_residual"),
    ],
)
def test_an_option_beyond_gpt2_is_refused_by_name(
    form: str, option: str, value: object, name: str, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_meta(broken, **{option: value})
    message = refused(capsys, broken, "--to", tmp_path / "out", "--format", form)
    assert f"cannot express this model's {name}: export it with --format safetensors" in message
    assert f"gptctl-gpt2+{name} layout" in message


def test_the_trainers_own_layout_says_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = grown(tmp_path / "run", dataclasses.replace(TINY, rope=True, activation="relu2"))
    out = tmp_path / "out"
    export(capsys, checkpoint, "--to", out, "--format", "safetensors")
    assert json.loads((out / RECORD).read_text())["layout"] == "gptctl-gpt2+relu2+rope"
    export(capsys, grown(tmp_path / "plain"), "--to", out, "--format", "safetensors")
    assert json.loads((out / RECORD).read_text())["layout"] == "gptctl-gpt2"


def test_weights_of_another_model_are_named(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_meta(broken, n_layer=3)
    assert "tensor blocks.2.attention_norm.bias is missing" in refused(capsys, broken, "--to", tmp_path / "out")
    replace_meta(broken, n_layer=2, context_length=64)
    message = refused(capsys, broken, "--to", tmp_path / "out")
    assert "position_embedding.weight has shape (32, 32), expected (64, 32)" in message


def test_weights_in_a_type_without_a_numpy_twin_are_named(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_weights(broken, {name: tensor.bfloat16() for name, tensor in load_file(broken / MODEL_FILE).items()})
    message = refused(capsys, broken, "--to", tmp_path / "out")
    assert "tensor token_embedding.weight has type BF16; known: F64, F32, F16" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "nonesuch"], "no tokenizer is called 'nonesuch'"),
        (["--companions", "nowhere"], "cannot read or write"),
    ],
)
def test_bad_arguments_are_one_line(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, broken, "--to", tmp_path / "out", *arguments)


def test_a_tokenizer_that_is_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_run(tmp_path / "run", dataclasses.replace(TINY, vocab_size=100))
    message = refused(capsys, checkpoint, "--to", tmp_path / "out")
    assert "tokenizer bytes has ids up to 255, but the model knows 100" in message
    export(capsys, checkpoint, "--to", tmp_path / "out", "--tokenizer", "none")
    assert not (tmp_path / "out" / "tokenizer.json").exists()

"""Text to tokens by the command line: three kinds of files, one content, and what is said about damaged ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from tests.conftest import Gptctl
from tests.support.clouds.file_server import Hub
from tests.support.files.texts import as_json_lines, as_text, gpt2_vocabulary, paragraphs
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig

RUNS = """
import sys
from trainer.__main__ import main
runs = sys.argv[1:]
for run in runs:
    sys.argv = ["trainer", run]
    main()
"""


def curves_of(tmp_path: Path, folders: list[Path]) -> list[list[float]]:
    """The first losses of a small model on each dataset, exactly as the trainer writes them."""
    runs = [configured(tmp_path / f"run-{folder.name}", folder) for folder in folders]
    subprocess.run([sys.executable, "-c", RUNS, *map(str, runs)], check=True, capture_output=True)
    curves = []
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        curves.append([line["loss"] for line in lines] + [each["val_loss"] for each in events if "val_loss" in each])
    return curves


def configured(run: Path, folder: Path) -> Path:
    """A run folder of four steps on the token files of the folder."""
    files = {path.stem: str(path) for path in folder.iterdir() if path.suffix != ".json"}
    run.mkdir()
    config = RunConfig(
        model=ModelConfig(vocab_size=50257, context_length=32, n_layer=1, n_head=1, n_embd=8, tie_embeddings=True),
        data=DataConfig(
            train_files=(files["train"],), validation_files=(files["validation"],), validation_tokens=320,
            order="shuffled",
        ),
        train=TrainConfig(
            steps=4, global_batch=2, micro_batch=2, precision="fp32", log_every=1, validate_every=4, checkpoint_every=4
        ),
        device="cpu",
    )  # fmt: skip
    (run / "config.json").write_text(config.to_json())
    return run


@pytest.mark.nightly
@pytest.mark.parametrize("size_bytes", [700_000, 10_500_000])
def test_one_corpus_in_three_kinds_of_files(
    gptctl: Gptctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_vocabulary(tmp_path / "vocabulary")))
    source = as_text(tmp_path / "corpus.txt", paragraphs(size_bytes))
    assert source.stat().st_size > 0.95 * size_bytes
    prepared = gptctl("data", "prepare", "corpus.txt", "--to", "a-safetensors", "--json")
    assert prepared.returncode == 0, prepared.stderr
    dataset = json.loads(prepared.stdout)
    assert dataset["source"] == "corpus.txt"
    for kind in ("llmc", "nanogpt"):
        done = gptctl("data", "convert", "a-safetensors", "--format", kind, "--to", f"a-{kind}")
        assert done.returncode == 0, done.stderr
    # What is converted is, to the last byte, what would have been prepared.
    direct = gptctl("data", "prepare", "corpus.txt", "--to", "direct", "--format", "llmc", "--workers", "1")
    assert direct.returncode == 0, direct.stderr
    for name in ("train.bin", "validation.bin", "dataset.json"):
        assert (tmp_path / "direct" / name).read_bytes() == (tmp_path / "a-llmc" / name).read_bytes()

    looks = {}
    for kind in ("safetensors", "llmc", "nanogpt"):
        looked = gptctl("data", "inspect", f"a-{kind}", "--json")
        assert looked.returncode == 0, looked.stderr
        looks[kind] = json.loads(looked.stdout)
        assert looks[kind].pop("format") == kind
        looks[kind].pop("path")
        looks[kind]["files"] = [
            {key: value for key, value in file.items() if key not in ("name", "format", "size_bytes")}
            for file in looks[kind]["files"]
        ]
    assert looks["safetensors"] == looks["llmc"] == looks["nanogpt"]
    assert looks["llmc"]["tokens"] == dataset["tokens"] > size_bytes / 6
    assert looks["llmc"]["documents"] == dataset["documents"]
    assert looks["llmc"]["problems"] == []
    assert sum(each["count"] for each in looks["llmc"]["histogram"]) == dataset["tokens"]

    curves = curves_of(tmp_path, [tmp_path / f"a-{kind}" for kind in ("safetensors", "llmc", "nanogpt")])
    assert len(curves[0]) >= 5
    assert curves[0] == curves[1] == curves[2]


def test_a_newcomers_way_from_text_to_a_look(gptctl: Gptctl, tmp_path: Path) -> None:
    as_json_lines(tmp_path / "lines.jsonl", paragraphs(900_000))
    prepared = gptctl("data", "prepare", "lines.jsonl", "--tokenizer", "bytes", "--to", "out")
    assert prepared.returncode == 0, prepared.stderr
    assert "tokens of bytes (257 ids, safetensors, uint16)" in prepared.stdout
    again = gptctl("data", "prepare", "lines.jsonl", "--tokenizer", "bytes", "--to", "out")
    assert "unchanged: out holds" in again.stdout
    looked = gptctl("data", "inspect", "out")
    assert looked.returncode == 0
    for words in ("tokenizer  bytes, 257 ids", "begins with", "most frequent", "validation.safetensors"):
        assert words in looked.stdout
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[model]\nvocab_size = 257\n[data]\nsource = "out"\n')
    assert gptctl("plan", "mine.toml", "--offline").returncode == 0


def damage(folder: Path, how: str) -> None:
    """One of the ways in which a dataset breaks."""
    path = folder / "train-00001.bin"
    if how == "flip":
        content = bytearray(path.read_bytes())
        content[20_000_000] ^= 1
        path.write_bytes(content)
    elif how == "short":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "missing":
        path.unlink()
    elif how == "swap":
        other = folder / "train-00000.bin"
        path.rename(folder / "x")
        other.rename(path)
        (folder / "x").rename(other)
    elif how == "foreign":
        (folder / "train-00009.bin").write_bytes(b"\0\0")
    else:
        about = folder / "dataset.json"
        about.write_text(about.read_text().replace('"train-00001.bin"', '"../train-00001.bin"'))


DAMAGES = {
    "flip": "train-00001.bin: block 1 of 2 is damaged (bytes 16777216 to 20001023)",
    "short": "train-00001.bin: is 100 bytes shorter than it was",
    "missing": "train-00001.bin: is missing",
    "swap": "train-00000.bin: holds the content of train-00001.bin: were the two swapped?",
    "foreign": "train-00009.bin is not in dataset.json",
    "path": "../train-00001.bin: is not a plain file name",
}


@pytest.mark.nightly
def test_verify_says_what_is_damaged_and_where(gptctl: Gptctl, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab cd ef " * 2_300_000)
    prepared = gptctl(
        "data", "prepare", "text.txt", "--tokenizer", "bytes", "--format", "llmc", "--shard-tokens", "10000000",
        "--to", "good",
    )  # fmt: skip
    assert prepared.returncode == 0, prepared.stderr
    for how, message in DAMAGES.items():
        folder = tmp_path / how
        shutil.copytree(tmp_path / "good", folder)
        damage(folder, how)
        verified = gptctl("data", "verify", how, "--json")
        assert verified.returncode == 4
        assert message in verified.stderr
        found = json.loads(verified.stdout)
        assert found["ok"] is False
        if how == "flip":
            assert [file["damaged_blocks"] for file in found["files"]] == [[], [1], []]
        shutil.rmtree(folder)


def test_inspect_finds_what_is_wrong_with_ids_and_files(gptctl: Gptctl, tmp_path: Path) -> None:
    good = np.arange(1, 250, dtype=np.uint16).repeat(100)
    beyond = good.copy()
    beyond[777] = 300
    holes = np.concatenate([good, np.zeros(9_000, np.uint16), good])
    save_file({"tokens": beyond}, tmp_path / "beyond.safetensors")
    holes.tofile(tmp_path / "holes.bin")
    (tmp_path / "odd.bin").write_bytes(b"123")
    (tmp_path / "empty.bin").write_bytes(b"")
    save_file({"tokens": np.array([5, -7, 2**31 - 1], np.int32)}, tmp_path / "wild.safetensors")
    save_file({"other": good}, tmp_path / "other.safetensors")
    for name, problem in {
        "beyond.safetensors": "token 777 has id 300, but the vocabulary has 257 ids",
        "holes.bin": "4096 zeros in a row from token 28672: never written?",
        "odd.bin": "truncated or damaged: 3 bytes are not a whole number of uint16 tokens",
        "empty.bin": "truncated or damaged: 0 bytes",
        "wild.safetensors": "token 1 has id -7, but the vocabulary has 257 ids",
        "other.safetensors": "has no tensor named tokens, only other",
    }.items():
        looked = gptctl("data", "inspect", name, "--tokenizer", "bytes")
        assert looked.returncode == 2, name
        assert f"problem: {name}: {problem}" in looked.stderr
        assert "Traceback" not in looked.stderr


def test_convert_refuses_what_would_lose_something(gptctl: Gptctl, tmp_path: Path) -> None:
    save_file({"tokens": np.array([5, 70_000], np.uint32)}, tmp_path / "wide.safetensors")
    refused = gptctl("data", "convert", "wide.safetensors", "--format", "llmc", "--to", "wide.bin")
    assert refused.returncode == 2
    assert "token 1 has id 70000, which uint16 cannot hold" in refused.stderr
    assert [path.name for path in tmp_path.glob("*wide*")] == ["wide.safetensors"]
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "train.bin")
    assert gptctl("data", "convert", "train.bin", "--format", "safetensors", "--to", "x").returncode == 0
    twice = gptctl("data", "convert", "train.bin", "--format", "safetensors", "--to", "x")
    assert (twice.returncode, "exists: add --overwrite" in twice.stderr) == (2, True)
    itself = gptctl("data", "convert", "train.bin", "--format", "nanogpt", "--to", "train.bin", "--overwrite")
    assert (itself.returncode, "is the source itself" in itself.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "nothing.txt", "--to", "out"], "matches no text file: give a file, a folder or a glob in quotes"),
        (["prepare", "empty.txt", "--to", "out"], "has no text: 1 documents are empty"),
        (["prepare", "latin.txt", "--to", "out"], "1 not UTF-8 (--invalid replace keeps them)"),
        (["prepare", "good.txt", "--to", "good.txt"], "good.txt"),
        (["prepare", "good.txt", "--to", "out", "--tokenizer", "gtp2"], "no tokenizer is called 'gtp2'; known: bytes"),
        (["inspect", "nothing"], "nothing does not exist"),
        (["inspect", "."], "no file says train in its name or folder"),
        (["verify", "."], "has no dataset.json that lists files"),
    ],
)
def test_bad_input_is_one_line(gptctl: Gptctl, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    (tmp_path / "good.txt").write_text("good")
    bytes_too = ["--tokenizer", "bytes"] if arguments[0] == "prepare" and "--tokenizer" not in arguments else []
    done = gptctl("data", *arguments, *bytes_too)
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("gptctl: ")]) <= 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.nightly
def test_text_of_the_hub_is_downloaded_and_prepared(gptctl: Gptctl, tmp_path: Path) -> None:
    texts = paragraphs(600_000)
    half = len(texts) // 2
    for name, part in {"0": texts[:half], "1": texts[half:], "validation": ["held out by its owner"]}.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), tmp_path / f"{name}.parquet")
    with Hub() as hub:
        files = {f"data/train-{number}.parquet": tmp_path / f"{number}.parquet" for number in "01"}
        more = {"data/validation-0.parquet": tmp_path / "validation.parquet", "README.md": b"# stories"}
        commit = hub.publish("me/stories", {**files, **more}, token="hf_right")
        there = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_right", "HF_HOME": str(tmp_path / "hf")}
        arguments = ("data", "prepare", "hf://me/stories", "--tokenizer", "bytes", "--to", "out", "--json")
        refused = gptctl(*arguments, env={**there, "HF_TOKEN": ""})
        assert refused.returncode != 0
        assert "hf://me/stories does not exist, or is private and you have set no token" in refused.stderr
        done = gptctl(*arguments, env=there)
        assert done.returncode == 0, done.stderr
        again = gptctl(*arguments, env=there)
        assert json.loads(again.stdout)["unchanged"]
    assert "2 of 4 files" in done.stderr
    assert "hf_right" not in done.stderr + done.stdout
    dataset = json.loads(done.stdout)
    assert (dataset["source"], dataset["request"]["revision"]) == ("hf://me/stories", commit)
    assert dataset["documents"] == len(texts)
    as_text(tmp_path / "same.txt", texts)
    local = gptctl("data", "prepare", "same.txt", "--tokenizer", "bytes", "--to", "local", "--json")
    assert json.loads(local.stdout)["files"] == dataset["files"]


HUB_RECIPE = """
extends = "{tiny}"
name = "from-the-hub"
[data.prepare]
source = "hf://me/stories/data/*.parquet"
column = "story"
documents = 150
"""


@pytest.mark.nightly
@pytest.mark.usefixtures("known_machine")
def test_a_recipe_prepares_text_of_the_hub(
    gptctl: Gptctl, gptctl_home: Path, tmp_path: Path, tiny: Callable[..., str]
) -> None:
    table = pyarrow.table({"story": paragraphs(700_000)})
    pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
    recipe = tmp_path / "hub.toml"
    recipe.write_text(HUB_RECIPE.format(tiny=tiny(10, prepares=True)))
    with Hub() as hub:
        commit = hub.publish("me/stories", {"data/train-0.parquet": tmp_path / "0.parquet"})
        there = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "", "HF_HOME": str(tmp_path / "hf")}
        planned = gptctl("plan", str(recipe), "--host", "local", "--offline", "--json", env=there)
        (plan,) = json.loads(planned.stdout)["plans"]
        assert any("downloaded and prepared on this computer" in warning for warning in plan["warnings"])
        first = gptctl("run", str(recipe), "--host", "local", "--yes", env=there)
        assert first.returncode == 0, first.stderr
    (about,) = (gptctl_home / "data").glob("*/dataset.json")
    dataset = json.loads(about.read_text())
    assert (dataset["source"], dataset["request"]["revision"]) == ("hf://me/stories/data/*.parquet", commit)
    assert dataset["documents"] == 150

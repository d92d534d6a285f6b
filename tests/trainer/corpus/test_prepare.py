"""python -m trainer.prepare on real files: what it writes, that it repeats, and what it says about bad input."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from trainer.prepare import main
from trainer.tokens.token_stream import TokenStream
from trainer.tokens.tokenizer import decode, open_tokenizer

END = 256


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, object]], str]:
    """Exit code, JSON lines on stdout, stderr."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_standard_library_becomes_a_dataset_the_trainer_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, _ = run(capsys, "--source", "python-stdlib", "--tokenizer", "bytes", "--to", tmp_path)
    assert code == 0
    assert lines[-1]["event"] == "prepared"
    dataset = json.loads((tmp_path / "dataset.json").read_text())
    assert (dataset["tokenizer"], dataset["vocab_size"], dataset["dtype"]) == ("bytes", 257, "uint16")
    for name, entry in dataset["files"].items():
        assert sha256(tmp_path / name) == entry["sha256"]
        stream = TokenStream.open([tmp_path / name], vocab_size=257)
        assert len(stream) == entry["tokens"]
        ids = stream.read(0, len(stream))
        assert int((ids == END).sum()) == entry["documents"]
        assert ids[-1] == END
    sizes = {name: entry["tokens"] for name, entry in dataset["files"].items()}
    assert 1_000_000 < sizes["train.safetensors"] < 6_100_000
    assert sizes["validation.safetensors"] > 100_000
    assert "import" in decode(
        open_tokenizer("bytes"), TokenStream.open([tmp_path / "train.safetensors"]).read(0, 20_000)
    )


def test_the_same_request_gives_the_same_bytes_and_is_not_done_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--source", "python-stdlib", "--tokenizer", "bytes", "--documents", 120, "--to")
    run(capsys, *arguments, tmp_path / "a")
    run(capsys, *arguments, tmp_path / "b")
    for name in ("train.safetensors", "validation.safetensors", "dataset.json"):
        assert sha256(tmp_path / "a" / name) == sha256(tmp_path / "b" / name)
    before = (tmp_path / "a" / "train.safetensors").stat().st_mtime_ns
    _, lines, _ = run(capsys, *arguments, tmp_path / "a")
    assert [line["event"] for line in lines] == ["unchanged"]
    assert (tmp_path / "a" / "train.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["flip", "remove", "torn json", "other request"])
def test_a_dataset_that_does_not_answer_the_request_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    source = tmp_path / "text.txt"
    source.write_text("one text\n" * 50)
    arguments = ["--source", source, "--tokenizer", "bytes", "--to", tmp_path / "out"]
    run(capsys, *arguments)
    train, dataset = tmp_path / "out" / "train.safetensors", tmp_path / "out" / "dataset.json"
    whole = sha256(train)
    if damage == "flip":
        content = bytearray(train.read_bytes())
        content[-1] ^= 1
        train.write_bytes(content)
    elif damage == "remove":
        train.unlink()
    elif damage == "torn json":
        dataset.write_text(dataset.read_text()[:40])
    else:
        arguments += ["--separator", ""]
    code, lines, _ = run(capsys, *arguments)
    assert code == 0
    assert lines[-1]["event"] == "prepared"
    assert (sha256(train) == whole) == (damage != "other request")


def test_text_files_are_documents_and_a_mark_in_them_parts_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.txt").write_text("zwei")
    (tmp_path / "a.txt").write_text("eins<|endoftext|>halb")
    source = ("--source", tmp_path / "*.txt", "--tokenizer", "bytes", "--hold-out-every", 0)
    code, _, _ = run(capsys, *source, "--to", tmp_path / "out")
    assert code == 0
    tokens = load_file(tmp_path / "out" / "train.safetensors")["tokens"]
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [*b"eins", END, *b"halb", END, *b"zwei", END]
    assert not (tmp_path / "out" / "validation.safetensors").exists()


def test_without_separator_documents_join(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("ab")
    (tmp_path / "b.txt").write_text("cd")
    source = ("--source", tmp_path, "--tokenizer", "bytes", "--hold-out-every", 0)
    run(capsys, *source, "--separator", "", "--to", tmp_path / "out")
    assert load_file(tmp_path / "out" / "train.safetensors")["tokens"].tolist() == list(b"abcd")


def test_documents_are_split_by_their_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"document {number}" for number in range(200)]
    source = tmp_path / "many.txt"
    source.write_text("<|endoftext|>".join(texts))
    run(capsys, "--source", source, "--tokenizer", "bytes", "--to", tmp_path / "out")
    encoding = open_tokenizer("bytes")
    sides = {}
    for name in ("train", "validation"):
        ids = load_file(tmp_path / "out" / f"{name}.safetensors")["tokens"]
        sides[name] = set(decode(encoding, ids.tolist()).split("<|endoftext|>")) - {""}
    held_out = {text for text in texts if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 20 == 0}
    assert sides["validation"] == held_out
    assert sides["train"] == set(texts) - held_out
    assert held_out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nothing/*.txt"], "matches no text file"),
        (["--source", "hf://someone/something"], "is not a local file"),
        (["--source", "empty.txt"], "has no text"),
        (["--source", "latin1.txt"], "has no text"),
        (["--source", "good.txt", "--tokenizer", "gtp2"], "no tokenizer is called 'gtp2'; known: bytes, "),
        (["--source", "good.txt", "--separator", "<eot>"], "not a special token of bytes"),
        (["--source", "good.txt", "--bytes", "1"], "the limit is too small"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    Path("latin1.txt").write_bytes("für".encode("latin-1"))
    Path("good.txt").write_text("good")
    tokenizer = [] if "--tokenizer" in arguments else ["--tokenizer", "bytes"]
    code, _, err = run(capsys, *arguments, *tokenizer, "--to", "out")
    assert code == 1
    assert message in err
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "taken").write_text("a file where the folder should be")
    code, _, err = run(capsys, "--source", tmp_path / "a.txt", "--tokenizer", "bytes", "--to", tmp_path / "taken")
    assert code == 1
    assert str(tmp_path / "taken") in err

"""python -m trainer.prepare as a stream: several processes, kills, sources of three kinds, documents of any size."""

import gzip
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiktoken
from safetensors.numpy import load_file

from tests.support.clock.waiting import until
from tests.support.files.texts import as_json_lines, as_text, gpt2_vocabulary, paragraphs
from trainer import prepare
from trainer.corpus import documents
from trainer.tokens import token_writers
from trainer.tokens.token_stream import TokenStream
from trainer.tokens.tokenizer import open_tokenizer

END = 256


def contents(folder: Path) -> dict[str, str]:
    """sha256 of each file of a dataset."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def run(to: Path, source: object, *more: object) -> dict[str, object]:
    """Prepares with the bytes tokenizer, in this process unless there are workers, and returns dataset.json."""
    arguments = ["--source", source, "--named", "text", "--tokenizer", "bytes", "--workers", 1, "--to", to, *more]
    assert prepare.main([str(word) for word in arguments]) == 0
    dataset: dict[str, object] = json.loads((to / "dataset.json").read_text())
    return dataset


@pytest.mark.nightly
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_vocabulary(tmp_path / "vocabulary")))
    monkeypatch.setattr(prepare, "SMALL_BYTES", 0)
    texts = paragraphs(3_000_000)
    source = as_text(tmp_path / "text.txt", texts)
    more = ("--tokenizer", "gpt2", "--shard-tokens", 300_000)
    run(tmp_path / "one", source, *more)
    run(tmp_path / "two", source, *more, "--workers", 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    dataset = json.loads((tmp_path / "one" / "dataset.json").read_text())
    assert [name for name in dataset["files"] if name.startswith("train")][:2] == [
        "train-00000.safetensors", "train-00001.safetensors",
    ]  # fmt: skip
    # Every id is what tiktoken itself says of these documents.
    encoding = tiktoken.get_encoding("gpt2")
    held_out = [int(hashlib.sha256(text.encode()).hexdigest(), 16) % 20 == 0 for text in texts]
    for side, mine in (("train", False), ("validation", True)):
        names = sorted(name for name in dataset["files"] if name.startswith(side))
        stream = TokenStream.open([tmp_path / "one" / name for name in names], 50257)
        wanted = [text for text, held in zip(texts, held_out, strict=True) if held == mine]
        ids = [each for found in encoding.encode_ordinary_batch(wanted) for each in (*found, 50256)]
        assert stream.read(0, len(stream)).tolist() == ids
        assert sum(dataset["files"][name]["documents"] for name in names) == len(wanted)


@pytest.mark.nightly
def test_killed_again_and_again_it_goes_on_and_repeats_no_finished_shard(tmp_path: Path) -> None:
    source = as_text(tmp_path / "text.txt", paragraphs(12_000_000))
    more = ["--shard-tokens", "1300000", "--hold-out-every", "10"]
    run(tmp_path / "unbroken", source, *more)
    to = tmp_path / "killed"
    command = [
        sys.executable, "-m", "trainer.prepare", "--source", str(source), "--named", "text", "--tokenizer", "bytes",
        "--workers", "2", "--to", str(to), *more,
    ]  # fmt: skip
    seen: dict[str, int] = {}
    for number in (1, 2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 240
        while len(list((to / ".prepare").glob("*.safetensors"))) < 3 * number:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (to / "dataset.json").exists()
        state = json.loads((to / ".prepare" / "state.json").read_text())
        finished = {
            f"{side}-{index:05d}.safetensors" for side, known in state["sides"].items()
            for index in range(len(known["finished"]))
        }  # fmt: skip
        times = {name: (to / ".prepare" / name).stat().st_mtime_ns for name in finished}
        assert seen.items() <= times.items()  # what was finished before was not written again
        seen = times
        wait_until_gone(process.pid)
    assert len(seen) >= 3
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resumed" in {json.loads(line)["event"] for line in done.stdout.splitlines()}
    assert contents(to) == contents(tmp_path / "unbroken")


def wait_until_gone(session: int) -> None:
    """No worker outlives the program that started it."""
    until(lambda: not [
        pid for pid in os.listdir("/proc")
        if pid.isdigit() and int(pid) != session and session_of(pid) == session
    ])  # fmt: skip


def session_of(pid: str) -> int | None:
    try:
        return os.getsid(int(pid))
    except ProcessLookupError:
        return None


def test_a_kill_while_shards_move_to_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_text(tmp_path / "text.txt", paragraphs(2_000_000))
    more = ("--shard-tokens", 200_000)
    run(tmp_path / "unbroken", source, *more)
    to = tmp_path / "killed"
    run(to, source, "--separator", "", *more)  # another dataset was here
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "write_atomically", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(to, source, *more)
    assert not (to / "dataset.json").exists()
    run(to, source, *more)
    assert contents(to) == contents(tmp_path / "unbroken")


def test_text_json_lines_and_parquet_of_the_same_documents_are_the_same_dataset(tmp_path: Path) -> None:
    texts = paragraphs(1_500_000)
    table = pyarrow.table({"text": pyarrow.array(texts), "id": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=1_000)
    packed = tmp_path / "lines.jsonl.gz"
    packed.write_bytes(gzip.compress(as_json_lines(tmp_path / "plain.jsonl", texts).read_bytes()))
    wanted = run(tmp_path / "from-text", as_text(tmp_path / "text.txt", texts))
    for source in (tmp_path / "plain.jsonl", packed, tmp_path / "rows.parquet"):
        found = run(tmp_path / f"from-{source.name}", source)
        assert found["source_sha256"] == wanted["source_sha256"]
        assert found["files"] == wanted["files"]


@pytest.mark.parametrize("kind", ["text.txt", "lines.jsonl", "rows.parquet"])
def test_reading_goes_on_at_any_place(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "BATCH_BYTES", 50_000)
    texts = paragraphs(1_000_000)
    path = tmp_path / kind
    if kind == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=300)
    else:
        (as_text if kind == "text.txt" else as_json_lines)(path, texts)
    files = documents.find_files([str(path)])
    whole = list(documents.read_batches(files, documents.Place(), "text"))
    assert len(whole) > 10
    for number in (0, 4, len(whole) - 1):
        rest = list(documents.read_batches(files, whole[number].after, "text"))
        assert [batch.records for batch in rest] == [batch.records for batch in whole[number + 1 :]]


def test_a_document_larger_than_memory_would_like_comes_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_vocabulary(tmp_path / "vocabulary")))
    monkeypatch.setattr(documents, "PIECE_BYTES", 200_000)
    monkeypatch.setattr(documents, "BATCH_BYTES", 70_001)
    large = "\n\n".join(paragraphs(1_000_000)) + " Größe, 字 und 🦜 am Ende"
    broken = b"x" * 300_000 + b"\xff" + b"y" * 300_000
    path = tmp_path / "text.txt"
    path.write_bytes(b"<|endoftext|>".join([b"small", large.encode(), broken, b"last"]))
    dataset = run(tmp_path / "out", path, "--tokenizer", "gpt2", "--hold-out-every", "0")
    tokens = load_file(tmp_path / "out" / "train.safetensors")["tokens"]
    encoding = open_tokenizer("gpt2")
    wanted = [each for text in ("small", large, "last") for each in (*encoding.encode_ordinary(text), 50256)]
    assert tokens.tolist() == wanted
    assert dataset["documents"] == 3
    assert dataset["skipped"]["invalid_utf8"] == 1
    files = documents.find_files([str(path)])
    whole = list(documents.read_batches(files, documents.Place(), "text"))
    for batch, following in itertools.pairwise(whole):
        assert next(documents.read_batches(files, batch.after, "text")).records == following.records


@pytest.mark.parametrize("kind", ["safetensors", "llmc", "nanogpt"])
def test_all_formats_hold_the_same_ids(tmp_path: Path, kind: str) -> None:
    source = as_text(tmp_path / "text.txt", paragraphs(400_000))
    dataset = run(tmp_path / "out", source, "--format", kind)
    reference = run(tmp_path / "reference", source)
    for name, entry in reference["files"].items():
        written = name if kind == "safetensors" else name.replace(".safetensors", ".bin")
        stream = TokenStream.open([tmp_path / "out" / written], 257)
        assert np.array_equal(
            stream.read(0, len(stream)), TokenStream.open([tmp_path / "reference" / name]).read(0, len(stream))
        )
        assert dataset["files"][written]["tokens"] == entry["tokens"] == len(stream)
    assert dataset["format"] == kind


def test_what_is_skipped_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n\n{"text": null}\n{"text": "f\xfcr"}\n{"text": "lone \\ud800"}\n{"text": "end"}'
    )
    dataset = run(tmp_path / "out", path)
    assert dataset["skipped"] == {
        "invalid_utf8": 2, "empty": 2, "policy": "a document that is not UTF-8 is left out and counted",
    }  # fmt: skip
    assert dataset["documents"] == 2


def test_blocks_of_sixteen_mebibytes(tmp_path: Path) -> None:
    dataset = run(tmp_path / "out", as_text(tmp_path / "text.txt", ["ab cd " * 3_000_000]))
    entry = dataset["files"]["train.safetensors"]
    content = (tmp_path / "out" / "train.safetensors").read_bytes()
    blocks = [content[at : at + 2**24] for at in range(0, len(content), 2**24)]
    assert len(blocks) == 3
    assert entry["blocks"] == [hashlib.sha256(block).hexdigest() for block in blocks]
    assert (entry["block_size_bytes"], entry["size_bytes"]) == (2**24, len(content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl: the line at byte 14 is not JSON"),
        ("a.jsonl", b'{"content": "x", "id": 1}\n', "has no 'text'; it has: content, id. Choose with --column"),
        ("a.jsonl", b'{"text": 7}\n', "has 'text' as int, not as text"),
        ("a.jsonl.gz", b"no gzip", "damaged, or not a gzip file"),
        ("a.parquet", b"PAR1 no parquet", "damaged, or not a Parquet file"),
        ("a.txt.zst", b"", ".zst cannot be read: unpack it"),
    ],
)
def test_bad_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    code = prepare.main(["--source", str(tmp_path / name), "--tokenizer", "bytes", "--to", str(tmp_path / "out")])
    assert code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_parquet_file_without_a_text_column_names_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"story": ["x"], "n": [1]}), tmp_path / "a.parquet")
    arguments = ["--source", str(tmp_path), "--tokenizer", "bytes", "--to", str(tmp_path / "out")]
    assert prepare.main(arguments) == 1
    assert "has no column 'text'; it has: story (string), n (int64)" in capsys.readouterr().err
    assert prepare.main([*arguments, "--column", "n"]) == 1
    assert "column 'n' holds int64, not text" in capsys.readouterr().err
    assert prepare.main([*arguments, "--column", "story"]) == 0


def test_foreign_token_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.bin").write_bytes(b"mine")
    source = as_text(tmp_path / "text.txt", ["x"])
    arguments = ["--source", str(source), "--tokenizer", "bytes", "--to", str(tmp_path / "out")]
    assert prepare.main(arguments) == 1
    assert "has train.bin and no dataset.json: choose another folder" in capsys.readouterr().err
    assert contents(tmp_path / "out") == {"train.bin": hashlib.sha256(b"mine").hexdigest()}


def test_a_vocabulary_that_16_bits_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.dtype_for("safetensors", 100_277) == "uint32"
    with pytest.raises(ValueError, match="16-bit ids, and this vocabulary has 100277: use safetensors"):
        prepare.dtype_for("llmc", 100_277)
    assert capsys.readouterr().err == ""


def test_a_shard_is_never_in_memory_whole(tmp_path: Path) -> None:
    chunk, number = bytes(2**20), 48
    tracemalloc.start()
    try:
        layout = token_writers.Layout("safetensors", "uint16", 10**9)
        chunks = (bytearray(chunk) for _ in range(number))
        entry = token_writers.write_token_file(tmp_path / "large.safetensors", layout, number * 2**19, chunks, 1)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert entry["size_bytes"] > number * 2**20
    assert peak_bytes < 6 * 2**20


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = as_text(tmp_path / "text.txt", paragraphs(700_000))
    assert prepare.main(["--source", str(source), "--tokenizer", "bytes", "--to", str(small_disk / "out")]) == 1
    said = capsys.readouterr().err
    assert "needs at least 0.001 GB, and its disk has 0.00" in said or "needs at least 0.002 GB" in said
    assert not (small_disk / "out").exists()

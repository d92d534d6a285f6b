"""Text as people have it: byte order marks, CSV, JSON arrays, UTF-16, Arrow's string views, and very few documents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file

from trainer.corpus.csv_rows import read_rows
from trainer.prepare import main

MARK = b"\xef\xbb\xbf"
TEXTS = [f'document {at}, with a "quote"\nand a second line' for at in range(9)]
QUOTED = [text.replace('"', '""') for text in TEXTS]
CSV = "id,body\n" + "".join(f'{at},"{text}"\n' for at, text in enumerate(QUOTED))
LINES = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS)


def ids(folder: Path) -> list[int]:
    """Of both sides, sorted by document."""
    found = np.concatenate([load_file(path)["tokens"] for path in sorted(folder.glob("*.safetensors"))])
    parts = np.split(found, np.flatnonzero(found == 256) + 1)
    return [int(token) for part in sorted(part.tolist() for part in parts if len(part)) for token in part]


def prepared(path: Path, *more: str) -> list[int]:
    assert main([f"--source={path}", "--tokenizer=bytes", "--workers=1", *more, f"--to={path}.out"]) == 0
    return ids(Path(f"{path}.out"))


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    for name, content in {"a.txt": b"hello world", "b.jsonl": LINES.encode(), "c.csv": CSV.encode()}.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"mark-{name}").write_bytes(MARK + content)
        column = () if name == "a.txt" else ("--column=body",)
        assert prepared(tmp_path / name, *column) == prepared(tmp_path / f"mark-{name}", *column)
    (tmp_path / "joined.jsonl").write_bytes(MARK + LINES.encode() + MARK + LINES.encode())
    assert len(prepared(tmp_path / "joined.jsonl", "--column=body")) == 2 * len(
        prepared(tmp_path / "b.jsonl", "--column=body")
    )


def test_every_kind_gives_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "a.csv").write_text(CSV)
    (tmp_path / "a.tsv").write_text(CSV.replace("id,body", "id\tbody").replace(',"', '\t"'))
    for kind, name in ((pyarrow.string(), "plain"), (pyarrow.string_view(), "view"), (pyarrow.binary_view(), "bytes")):
        values = [text.encode() for text in TEXTS] if name == "bytes" else TEXTS
        table = pyarrow.table({"body": pyarrow.array(values, kind)})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    expected = prepared(tmp_path / "a.jsonl", "--column=body")
    for name in ("a.csv", "a.tsv", "plain.parquet", "view.parquet", "bytes.parquet"):
        assert prepared(tmp_path / name, "--column=body") == expected, name


def test_rows_resume_at_any_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(MARK + CSV.encode())
    with path.open("rb") as file:
        rows = list(read_rows(path, file, 0, "body"))
        for at, (_, place) in enumerate(rows):
            assert list(read_rows(path, file, place, "body")) == rows[at + 1 :]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", CSV.encode(), "has no column 'text'; it has: id, body. Choose one with --column"),
        ("torn.csv", b"id,text\n1,a\n2\n", "the row at byte 12 has 1 fields, not 2"),
        ("a.json", b'[{"text": "a"}, {"text": "b"}]', "is a JSON array, not JSON Lines"),
        ("pretty.json", b'[\n {"text": "a"}\n]', "is a JSON array, not JSON Lines"),
        ("a.txt", "hello".encode("utf-16"), "is UTF-16: iconv"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is UTF-16: iconv"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main([f"--source={tmp_path / name}", "--tokenizer=bytes", f"--to={tmp_path / 'out'}"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("documents", "held_out"), [(1, 0), (2, 1), (5, 1), (19, 1), (99, 1)])
def test_of_few_documents_at_least_one_is_held_out(tmp_path: Path, documents: int, held_out: int) -> None:
    path = tmp_path / "few.txt"
    path.write_text("<|endoftext|>".join(f"this is document {at}" for at in range(documents)))
    prepared(path)
    split = json.loads((tmp_path / "few.txt.out" / "dataset.json").read_text())["split"]
    assert split["held_out"] >= held_out and (documents == 1) == (split["held_out"] == 0)
    prepared(path, "--hold-out-every=0")
    assert json.loads((tmp_path / "few.txt.out" / "dataset.json").read_text())["split"]["held_out"] == 0


def test_documents_that_are_all_the_same_are_not_all_held_out(tmp_path: Path) -> None:
    (tmp_path / "same.txt").write_text("<|endoftext|>".join(["the very same"] * 5))
    prepared(tmp_path / "same.txt")
    assert not (tmp_path / "same.txt.out" / "validation.safetensors").exists()

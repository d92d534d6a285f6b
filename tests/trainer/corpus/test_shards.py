"""A preparation in shards gives the bytes of one in one go: whatever the text, their number, order and machine."""

import gzip
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.corpus.encode import encode_batch
from trainer.corpus.shards.piece import IDS, RECORDS, SHARD_JSON
from trainer.corpus.split import Split
from trainer.prepare import main
from trainer.progress import Timer

TEXTS = [f"{'word ' * (number % 23)}text {number} €\n" for number in range(300)]
MORE = ("--tokenizer", "bytes", "--named", "the text")


def run(*arguments: object) -> int:
    return main([str(each) for each in (*MORE, *arguments)])


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def marked(folder: Path) -> None:
    (folder / "a.txt").write_text("\ufeff" + "<|endoftext|>".join(TEXTS))
    (folder / "b.txt").write_bytes(b"<|endoftext|>".join([b"no \xff text", b"", *(t.encode() for t in TEXTS[:9]), b""]))


def large(folder: Path) -> None:
    """A document of several pieces among small ones."""
    (folder / "a.txt").write_text("<|endoftext|>".join([*TEXTS[:40], "long words " * 500_000, *TEXTS[40:90]]))


def json_lines(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines(TEXTS[:200]) + b"\n")
    (folder / "b.jsonl").write_bytes(lines(TEXTS[200:]).rstrip(b"\n"))


def compressed(folder: Path) -> None:
    for number in range(5):
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS[number * 30 : number * 30 + 30])))


def table(folder: Path) -> None:
    rows = "".join(f'{number},"{text}"\n' for number, text in enumerate(TEXTS))
    (folder / "a.csv").write_text(f"id,text\n{rows}")


def few(folder: Path) -> None:
    """None is held out by its hash, so that the lowest one is: which, follows from all of them."""
    (folder / "a.txt").write_text("<|endoftext|>".join(f"few {number}" for number in range(4)))


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("write", [marked, json_lines, compressed, table, few])
@pytest.mark.parametrize("more", [(), ("--separator", "", "--hold-out-every", 3, "--invalid", "replace")])
def test_shards_in_any_order_give_the_same_bytes(
    tmp_path: Path, write: Callable[[Path], None], count: int, more: tuple[object, ...]
) -> None:
    (text := tmp_path / "text").mkdir()
    write(text)
    more = ("--source", text / "*", "--shard-tokens", 700, *more)
    assert run(*more, "--to", tmp_path / "whole") == 0
    order = list(range(1, count + 1))
    random.Random(count).shuffle(order)
    for shard in order:
        assert run(*more, "--to", tmp_path / "merged", "--shard", f"{shard}/{count}") == 0
    assert run("--merge", "--to", tmp_path / "merged") == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_a_document_of_several_pieces_is_in_one_shard(tmp_path: Path) -> None:
    (text := tmp_path / "text").mkdir()
    large(text)
    more = ("--source", text, "--shard-tokens", 1_500_000)
    assert run(*more, "--to", tmp_path / "whole") == 0
    for shard in (3, 1, 2):
        assert run(*more, "--to", tmp_path / "merged", "--shard", f"{shard}/3", "--workers", 1) == 0
    assert run("--merge", "--to", tmp_path / "merged") == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (folder := tmp_path / "text").mkdir()
    json_lines(folder)
    return folder


def test_another_machine_is_sent_the_text_of_its_shard_alone(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--source", text, "--to", tmp_path / "whole") == 0
    capsys.readouterr()
    for shard in (2, 1, 3):
        sent = tmp_path / f"sent-{shard}"
        assert run("--source", text, "--to", tmp_path, "--shard", f"{shard}/3", "--cut", sent) == 0
        cut = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert sorted(each.name for each in sent.iterdir()) == cut["files"]
        to = ("--to", tmp_path / "merged", "--order", json.dumps(cut["order"]))
        assert run("--source", sent / "*", *to) == 0
    assert run("--source", text, "--to", tmp_path / "merged", "--shard", "2/3", "--cut", tmp_path / "none") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["event"] == "unchanged"  # it is not sent again
    sizes = [sum(each.stat().st_size for each in (tmp_path / f"sent-{shard}").iterdir()) for shard in (1, 2, 3)]
    assert sum(sizes) == sum(each.stat().st_size for each in text.iterdir()) and max(sizes) < 1.5 * min(sizes)
    assert run("--merge", "--to", tmp_path / "merged") == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


def test_only_missing_and_broken_shards_are_made_again(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "merged"

    def make_all() -> list[str]:
        events = []
        for shard in range(1, 6):
            assert run("--source", text, "--to", to, "--shard", f"{shard}/5") == 0
            events.append(json.loads(capsys.readouterr().out.splitlines()[-1])["event"])
        return events

    assert make_all() == ["prepared"] * 5
    folders = [to / "shards" / f"{shard:05d}-of-00005" for shard in range(1, 6)]
    (folders[0] / SHARD_JSON).write_text("{")
    (folders[1] / SHARD_JSON).unlink()
    (folders[2] / IDS).write_bytes((folders[2] / IDS).read_bytes()[:-1] + b"?")
    (folders[4] / RECORDS).unlink()
    assert run("--merge", "--to", to) == 1
    said = capsys.readouterr().err
    for words in ("shard 1/5 is broken: its shard.json", "shard 2/5 is missing", "shard 3/5 is broken: ids.bin",
                  "shard 5/5 is broken: documents.bin"):  # fmt: skip
        assert words in said
    assert not (to / "dataset.json").exists()
    assert make_all() == ["prepared", "prepared", "prepared", "unchanged", "prepared"]
    assert run("--merge", "--to", to) == 0
    assert run("--source", text, "--to", tmp_path / "whole") == 0
    assert contents(to) == contents(tmp_path / "whole")
    capsys.readouterr()
    assert make_all() == ["unchanged"] * 5  # dataset.json answers


@pytest.mark.parametrize(
    ("mine", "theirs", "says"),
    [
        ('"tokenizer": "bytes"', '"tokenizer": "gpt2"', "tokenizer 'bytes' instead of 'gpt2'"),
        ('"hold_out_every": 20', '"hold_out_every": 7', "hold_out_every 20 instead of 7"),
        ('"text": "', '"text": "0', "another text"),
    ],
)
def test_a_shard_of_another_preparation_is_refused_by_name(
    tmp_path: Path, text: Path, mine: str, theirs: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    for shard in ("1/3", "3/3"):
        assert run("--source", text, "--to", to, "--shard", shard) == 0
    file = to / "shards" / "00001-of-00003" / SHARD_JSON
    file.write_text(file.read_text().replace(mine, theirs))
    assert run("--source", text, "--to", to, "--shard", "2/3") == 1
    assert says in capsys.readouterr().err
    assert run("--merge", "--to", to) == 1
    said = capsys.readouterr().err
    assert says in said and "shard 2/3 is missing" in said


def test_shards_of_two_numbers_are_refused(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "to"
    assert run("--source", text, "--to", to, "--shard", "1/3") == 0
    assert run("--source", text, "--to", to, "--shard", "1/4") == 1
    assert "of 4 instead of 3" in capsys.readouterr().err
    (to / "shards" / "00001-of-00004").mkdir()
    assert run("--merge", "--to", to) == 1
    assert "shards of 3 and of 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "limits", [("--documents", 5), ("--tokens", 100), ("--bytes", 100), ("--source", "python-stdlib")]
)
def test_what_counts_across_shards_is_refused(
    tmp_path: Path, text: Path, limits: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    source = () if "--source" in limits else ("--source", text)
    assert run(*source, *limits, "--to", tmp_path / "to", "--shard", "1/2") == 1
    assert "a shard takes all documents" in capsys.readouterr().err


def test_killed_it_resumes_within_the_shard_and_the_merge_within_the_dataset(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.corpus.documents.BATCH_RECORDS", 20)
    monkeypatch.setattr("trainer.corpus.shards.piece.RECORDS_AT_ONCE", 20)
    monkeypatch.setattr(Timer, "is_due", lambda *_, **__: True)  # a state after each batch
    more = ("--source", text, "--shard-tokens", 700)
    assert run(*more, "--to", tmp_path / "whole") == 0
    to, encode = tmp_path / "merged", encode_batch
    counts = [0]

    def killed(*arguments: object, **settings: object) -> object:
        counts[0] += 1
        if counts[0] == 4:
            raise KeyboardInterrupt
        return encode(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.corpus.shards.make.encode_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*more, "--to", to, "--shard", "1/1")
    assert run("--merge", "--to", to) == 1
    assert run(*more, "--to", to, "--shard", "1/1") == 0
    assert counts[0] == 4 + 16 - 3  # 300 documents and an empty line, 20 at once; three batches were in the state
    take, taken = Split.take, [0]

    def stopped(self: Split, *arguments: object) -> None:
        taken[0] += 1
        if taken[0] == 9:
            raise KeyboardInterrupt
        take(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Split, "take", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("--merge", "--to", to)
    assert run("--merge", "--to", to) == 0
    assert taken[0] == 9 + 15 - 8
    assert contents(to) == contents(tmp_path / "whole")

"""Mixtures: the same bytes twice and after kills, by weight; leaks between datasets found, and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trainer.corpus import mixture, overlap, work_folder
from trainer.corpus.fingerprints import fingerprints
from trainer.corpus.split import Split
from trainer.prepare import main
from trainer.tokens.folder import find_dataset
from trainer.tokens.token_stream import TokenStream

END = 256
BUDGET = 60_000


def sources(folder: Path) -> list[str]:
    """Three sources of other words and lengths each, as --mix: text, JSON Lines and CSV."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(5)
    texts = {
        name: [f"{name} {at} " + "word " * int(random.integers(3, most)) for at in range(count)]
        for name, count, most in (("a", 700, 60), ("b", 900, 25), ("c", 300, 120))
    }
    (folder / "a.txt").write_text("<|endoftext|>".join(texts["a"]))
    (folder / "b.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts["b"]))
    (folder / "c.csv").write_text("text\n" + "".join(f"{text}\n" for text in texts["c"]))
    wanted = (("a.txt", 0.5, "text"), ("b.jsonl", 0.3, "body"), ("c.csv", 0.2, "text"))
    return [
        json.dumps({"source": name, "weight": weight, "paths": [str(folder / name)], "column": column})
        for name, weight, column in wanted
    ]


def prepare(folder: Path, to: Path, *more: str) -> dict[str, Any]:
    mix = [f"--mix={each}" for each in sources(folder)]
    assert main([*mix, "--tokenizer=bytes", f"--tokens={BUDGET}", "--workers=1", *more, f"--to={to}"]) == 0
    return dict(json.loads((to / "dataset.json").read_text()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_mixture_is_by_weight_up_to_its_budget_and_the_same_twice(tmp_path: Path) -> None:
    made = prepare(tmp_path / "in", tmp_path / "one")
    prepare(tmp_path / "in", tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert BUDGET <= made["tokens"] < BUDGET + 1000
    shares = {each["source"]: each["share"] for each in made["mixture"]}
    assert shares == pytest.approx({"a.txt": 0.5, "b.jsonl": 0.3, "c.csv": 0.2}, abs=0.01)
    assert sum(each["tokens"] for each in made["mixture"]) == made["tokens"]
    assert sum(each["documents"] for each in made["mixture"]) == made["documents"]
    ids = load_file(tmp_path / "one" / "train.safetensors")["tokens"]
    names = [bytes(part.astype("u1")[:1]) for part in np.split(ids, np.flatnonzero(ids == END) + 1)[:60]]
    assert {b"a", b"b", b"c"} == set(names)  # document by document, not one source after the other


def test_a_second_call_does_nothing_and_other_text_is_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "in", tmp_path / "out")
    capsys.readouterr()
    prepare(tmp_path / "in", tmp_path / "out")
    assert '"event": "unchanged"' in capsys.readouterr().out
    prepare(tmp_path / "in", tmp_path / "out", f"--tokens={BUDGET // 2}")
    assert '"event": "prepared"' in capsys.readouterr().out


@pytest.mark.parametrize("kill_after", [1, 2, 5, 9])
def test_killed_in_between_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int) -> None:
    prepare(tmp_path / "in", tmp_path / "whole")
    monkeypatch.setattr(mixture, "CHUNK_TOKENS", 5000)
    monkeypatch.setattr(work_folder, "KEEP_EVERY_S", 0.0)
    take, calls = Split.take, []

    def dying(self: Split, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == kill_after + 1:
            raise KeyboardInterrupt
        take(self, *arguments)

    monkeypatch.setattr(Split, "take", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in", tmp_path / "killed")
    assert not (tmp_path / "killed" / "dataset.json").exists()
    prepare(tmp_path / "in", tmp_path / "killed")
    assert len(calls) > kill_after + 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_source_that_ends_leaves_the_rest_to_the_others_and_is_named(tmp_path: Path) -> None:
    made = prepare(tmp_path / "in", tmp_path / "out", "--tokens=221000")
    ended = {each["source"]: each["ended"] for each in made["mixture"]}
    assert ended == {"a.txt": False, "b.jsonl": True, "c.csv": False}
    whole = prepare(tmp_path / "in", tmp_path / "all", "--tokens=10000000")
    assert all(each["ended"] for each in whole["mixture"]) and whole["documents"] == 1900


def planted(folder: Path, share: float) -> tuple[Path, Path]:
    """A training and a test dataset of 2,000 and 500 documents; this share of the test's is in the training's."""
    random = np.random.default_rng(11)
    own = [random.integers(0, 256, int(length)) for length in random.integers(5, 60, 2500)]
    train, test = own[:2000], own[2000:]
    for at in range(int(share * len(test))):
        train[7 * at] = test[3 * at % len(test)]
    for name, documents, kind in (("train", train, "<u2"), ("test", test, "<u4")):
        (folder / name).mkdir()
        ids = np.concatenate([np.append(each, END) for each in documents])
        save_file({"tokens": ids.astype(kind)}, folder / name / "train.safetensors")
    return folder / "train", folder / "test"


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_planted_overlap_is_found_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float) -> None:
    train, test = planted(tmp_path, share)
    assert overlap.main([str(train), str(test), "--tokenizer", "bytes"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["b"]["documents"] == 500 and found["a"]["documents"] == 2000
    assert found["a"]["shared_documents"] == found["b"]["shared_documents"] == int(share * 500)
    assert (found["b"]["shared_tokens"] > 0) == (share > 0)


def test_a_slice_is_looked_for_without_the_documents_that_it_tears(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = planted(tmp_path, 0.1)
    assert overlap.main([str(train), str(test), "--tokenizer", "bytes", "--slice", "1000+5000"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < found["b"]["shared_documents"] < 50 and 100 < found["b"]["documents"] < 250


@pytest.mark.parametrize("name", ["bytes", "gpt2", "cl100k_base"])
def test_the_mark_between_documents_is_known_without_a_vocabulary(tmp_path: Path, name: str) -> None:
    train, _ = planted(tmp_path, 0.0)
    known = {"bytes": 256, "gpt2": 50256, "cl100k_base": 100257}
    assert overlap.separator_of([find_dataset(train)], name) == known[name]


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = planted(tmp_path, 0.1)
    save_file({"tokens": np.arange(200, dtype="u2")}, tmp_path / "one.safetensors")
    assert overlap.main([str(train), str(tmp_path / "one.safetensors"), "--tokenizer", "bytes"]) == 1
    assert "is one document: the id 256" in capsys.readouterr().err


def test_documents_of_another_dataset_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = prepare(tmp_path / "in", tmp_path / "whole")
    stream = TokenStream.open([tmp_path / "whole" / "validation.safetensors"])
    unwanted = fingerprints(stream, END)
    without = prepare(tmp_path / "in", tmp_path / "out", f"--exclude={tmp_path / 'whole' / 'validation.safetensors'}")
    assert without["excluded"]["documents"] >= len(unwanted.prints) > 0
    assert without["excluded"]["source"].endswith("validation.safetensors") and made["tokens"] >= BUDGET
    capsys.readouterr()
    overlap.main([str(tmp_path / "out"), str(tmp_path / "whole" / "validation.safetensors"), "--tokenizer", "bytes"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["b"]["shared_documents"] == 0


def test_a_document_is_the_same_however_the_chunks_fall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = planted(tmp_path, 0.1)
    stream = TokenStream.open([train / "train.safetensors"])
    whole = fingerprints(stream, END)
    for size in (1, 7, 64):
        monkeypatch.setattr("trainer.corpus.fingerprints.CHUNK_TOKENS", size)
        part = fingerprints(TokenStream.open([train / "train.safetensors"]), END, (0, 3000))
        assert part.prints[:-1].tolist() == whole.prints[: len(part.prints) - 1].tolist()

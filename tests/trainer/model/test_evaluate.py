"""The validation loss against its definition, its split over ranks, and the program on good and bad folders."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.files.small_runs import TINY, python_source, write_run, write_tokens
from trainer.checkpoints.checkpoint import load_model
from trainer.evaluate import main
from trainer.model.gpt import GPT
from trainer.model.loss import LossSum, target_bytes, validation_loss
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return TokenStream.open([write_tokens(tmp_path / "text.safetensors", python_source(1000))], vocab_size=257)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(1)
    return GPT(TINY)


def test_the_loss_is_the_mean_cross_entropy_of_whole_sequences(stream: TokenStream, model: GPT) -> None:
    ids = torch.from_numpy(stream.read(40, 10 * 32 + 1))
    expected = [F.cross_entropy(model(ids[at : at + 32][None])[0], ids[at + 1 : at + 33]) for at in range(0, 320, 32)]
    # 330 tokens are ten whole sequences; the odd ten tokens at the end do not count.
    found = validation_loss(model, stream, 40, 330, 32, batch_size=3)
    assert found.targets == 320
    assert found.mean == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_ranks_parts_add_up_to_the_whole(stream: TokenStream, model: GPT, world: int) -> None:
    whole = validation_loss(model, stream, 0, 999, 32, batch_size=4)
    parts = [validation_loss(model, stream, 0, 999, 32, batch_size=4, rank=rank, world=world) for rank in range(world)]
    assert sum(part.targets for part in parts) == whole.targets == 31 * 32
    assert math.fsum(part.nats for part in parts) == pytest.approx(whole.nats, rel=1e-9)


def test_a_slice_up_to_the_end_leaves_out_what_has_no_target(stream: TokenStream, model: GPT) -> None:
    assert len(stream) == 1000
    assert validation_loss(model, stream, 1000 - 64, 64, 32, batch_size=4).targets == 32
    assert validation_loss(model, stream, 1000 - 65, 64, 32, batch_size=4).targets == 64


def test_dropout_is_off_meanwhile_and_the_mode_restored(stream: TokenStream) -> None:
    torch.manual_seed(1)
    model = GPT(replace(TINY, dropout=0.5)).train()
    first, second = (validation_loss(model, stream, 0, 320, 32, batch_size=4) for _ in range(2))
    assert first == second
    assert model.training


@pytest.mark.parametrize(("start", "tokens"), [(0, 31), (990, 32), (2000, 320), (-5, 320)])
def test_a_slice_without_a_sequence_is_refused(stream: TokenStream, model: GPT, start: int, tokens: int) -> None:
    with pytest.raises(DataError, match=r"text\.safetensors.*holds no whole sequence of 32.*there are 1000"):
        validation_loss(model, stream, start, tokens, 32, batch_size=4)


def test_an_empty_share_has_no_mean() -> None:
    assert math.isnan(LossSum(0.0, 0).mean)


def test_bytes_of_targets_leave_out_marks(tmp_path: Path) -> None:
    stream = TokenStream.open([write_tokens(tmp_path / "t.safetensors", [65, 66, 256, 67, 68])])
    assert target_bytes(stream, 0, 4, "bytes") == 3


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, float]], str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    return code, [line for line in lines if line["kind"] != "checkpoint"], err


def test_the_program_on_a_run_and_on_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = write_tokens(tmp_path / "text.safetensors", python_source(1000))
    checkpoint = write_run(tmp_path / "run", tokens=tokens)
    code, (line,), _ = evaluate(capsys, tmp_path / "run", "--slice", 40, 330)
    assert code == 0
    model, _ = load_model(checkpoint, torch.device("cpu"))
    expected = validation_loss(model, TokenStream.open([tokens]), 40, 330, 32, batch_size=8)
    assert line["slice"] == [40, 330]
    assert line["tokens"] == 320
    assert line["loss"] == pytest.approx(expected.mean, rel=1e-6)
    ids = np.frombuffer(python_source(1000)[40 : 40 + 321], np.uint8).astype("<u4")
    assert line["tokens_sha256"] == hashlib.sha256(ids.tobytes()).hexdigest()
    assert line["perplexity"] == pytest.approx(math.exp(expected.mean), rel=1e-6)
    assert line["bits_per_byte"] == pytest.approx(expected.mean / math.log(2), rel=1e-6)  # one byte per token
    code, lines, _ = evaluate(
        capsys, checkpoint, "--data", tokens, "--slice", 40, 330, "--slice", 0, 64, "--precision", "bf16"
    )
    assert code == 0
    assert lines[0]["loss"] == pytest.approx(expected.mean, rel=0.01)
    assert lines[1]["tokens"] == 64


def test_without_a_vocabulary_the_loss_still_comes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = write_tokens(tmp_path / "text.safetensors", python_source(1000))
    write_run(tmp_path / "run", tokens=tokens)
    code, (line,), err = evaluate(capsys, tmp_path / "run", "--tokenizer", "nonesuch")
    assert code == 0
    assert line["loss"] > 5
    assert line["bits_per_byte"] is None
    assert "no bits per byte: no tokenizer is called 'nonesuch'" in err


def damage_nothing(folder: Path) -> None:
    """The data are what is wrong."""


def flip_a_bit(folder: Path) -> None:
    weights = folder / "checkpoints" / "step-000007" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)


def remove_checkpoints(folder: Path) -> None:
    (folder / "checkpoints").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "ids", "message"),
    [
        (flip_a_bit, b"x" * 100, "model.safetensors does not have the sha256 of its manifest"),
        (remove_checkpoints, b"x" * 100, "neither a checkpoint"),
        (damage_nothing, b"", "holds no tokens"),
        (damage_nothing, [1] * 50 + [257] + [1] * 50, "token 50 has id 257, but the vocabulary has 257"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, ids: list[int] | bytes, message: str
) -> None:
    tokens = write_tokens(tmp_path / "text.safetensors", ids)
    write_run(tmp_path / "run", tokens=tokens)
    assert callable(damage)
    damage(tmp_path / "run")
    code, lines, err = evaluate(capsys, tmp_path / "run")
    assert code == 1
    assert message in err
    assert lines == []
    assert err.count("\n") == 1


def test_a_truncated_token_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = write_tokens(tmp_path / "text.safetensors", python_source(1000))
    tokens.write_bytes(tokens.read_bytes()[:-100])
    write_run(tmp_path / "run", tokens=tokens)
    code, _, err = evaluate(capsys, tmp_path / "run")
    assert code == 1
    assert "text.safetensors is truncated or damaged" in err


def test_a_checkpoint_alone_needs_data_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    code, _, err = evaluate(capsys, tmp_path / "run")
    assert code == 1
    assert "give them with --data" in err


@pytest.mark.parametrize("ranks", [2, pytest.param(5, marks=pytest.mark.nightly)])
def test_several_ranks_measure_what_one_does(tmp_path: Path, capfd: pytest.CaptureFixture[str], ranks: int) -> None:
    """37 sequences in batches of 2, 3 questions one at a time: the last rank has less to do than the first."""
    run = write_run(tmp_path / "run")
    data = write_tokens(tmp_path / "t.safetensors", python_source(37 * 32 + 5))
    questions = [{"ctx": "a", "endings": ["b", "cd"], "label": each % 2} for each in range(3)]
    (choices := tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, questions)))
    arguments = [run, "--data", data, "--choices", choices, "--slice", 0, 37 * 32, "--batch-size", 2, "--device", "cpu"]

    def found(ranks: int) -> list[dict[str, float]]:
        assert main([str(each) for each in [*arguments, "--ranks", ranks]]) == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]

    alone, together = found(1), found(ranks)
    assert [line.pop("ranks") for line in (alone[0], together[0])] == [1, ranks]
    assert [line["kind"] for line in together] == ["checkpoint", "choices", "slice"]
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert together[2].pop(key) == pytest.approx(alone[2].pop(key), rel=1e-9)
    for line in (alone[2], together[2]):
        line.pop("seconds")
    assert together == alone


@pytest.mark.nightly
def test_what_no_rank_can_do_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert main([str(run), "--data", str(tmp_path / "none"), "--device", "cpu", "--ranks", "2"]) == 1
    assert capfd.readouterr().err.count("evaluate: ") == 1

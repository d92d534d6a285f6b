"""Generation against its definition, and the sample program."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.files.small_runs import TINY, write_run
from trainer.model.generate import Sampling, SamplingError, continuations, filtered, generate, next_token
from trainer.model.gpt import GPT
from trainer.sample import main
from trainer.tokens.tokenizer import TokenizerError, decode, open_tokenizer, token_bytes

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.15, 0.1]])


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(5)
    return GPT(TINY).train()


def survivors(**settings: float) -> list[int]:
    kept = filtered(PROBABILITIES.log(), Sampling(**settings))  # type: ignore[arg-type]
    return torch.nonzero(torch.isfinite(kept[0])).flatten().tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 100}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 0.95}, [0, 1, 2, 3]),
        ({"top_p": 1e-9}, [0]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        ({"top_k": 3, "top_p": 0.8}, [0, 1]),
    ],
)
def test_top_k_and_top_p_keep_exactly_these(settings: dict[str, float], expected: list[int]) -> None:
    assert survivors(**settings) == expected


def test_rows_are_filtered_on_their_own() -> None:
    logits = torch.cat([PROBABILITIES, PROBABILITIES.flip(1)]).log()
    kept = torch.isfinite(filtered(logits, Sampling(top_k=2, top_p=0.9)))
    assert kept.tolist() == [[True, True, False, False], [False, False, True, True]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_probabilities(temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = next_token(PROBABILITIES.log().repeat(20_000, 1), Sampling(temperature=temperature), generator)
    expected = PROBABILITIES[0] ** (1 / temperature)
    expected /= expected.sum()
    assert torch.bincount(drawn, minlength=4) / 20_000 == pytest.approx(expected, abs=0.015)


def test_greedy_takes_the_most_probable_token_of_the_last_context(model: GPT) -> None:
    ids = torch.randint(257, (2, 40))
    longer = generate(model, ids, 5, Sampling(greedy=True))
    assert longer.shape == (2, 45)
    assert torch.equal(longer[:, :40], ids)
    for at in range(40, 45):  # 40 tokens are more than the context of 32: the last 32 count
        assert torch.equal(longer[:, at], model.eval()(longer[:, at - 32 : at])[:, -1].argmax(dim=-1))
    assert torch.equal(longer, generate(model, ids, 5, Sampling(temperature=0)))


def test_the_same_seed_gives_the_same_tokens_another_does_not(model: GPT) -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    one, same, other = (generate(model, ids, 20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert model.training


def test_padding_of_the_vocabulary_is_never_drawn(model: GPT) -> None:
    ids = torch.zeros(64, 1, dtype=torch.long)
    drawn = generate(model, ids, 20, Sampling(temperature=50.0), generator=torch.Generator().manual_seed(1))
    assert int(drawn.max()) <= 256
    assert len(drawn.unique()) > 200


def test_all_rows_at_their_end_stop_the_rest(model: GPT) -> None:
    with torch.no_grad():
        model.head.weight.zero_()  # all logits equal: greedy takes id 0
    assert generate(model, torch.ones(2, 3, dtype=torch.long), 50, Sampling(greedy=True), stop_id=0).shape == (2, 4)


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_p": math.nan}]
)
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SamplingError, match=f"{next(iter(settings))} must be"):
        Sampling(**settings)  # type: ignore[arg-type]


def test_a_prompt_beyond_the_vocabulary_is_refused(model: GPT) -> None:
    small = GPT(replace(TINY, vocab_size=100))
    with pytest.raises(SamplingError, match="gives id 121, but the model knows 100"):
        list(continuations(small, open_tokenizer("bytes"), "my", tokens=1))
    assert len(list(continuations(model, open_tokenizer("bytes"), "", tokens=3, batch=2))) == 2


def test_decoding_never_fails() -> None:
    encoding = open_tokenizer("bytes")
    assert decode(encoding, [104, 105, 300, 33]) == "hi\ufffd!"
    assert decode(encoding, [0xC3]) == "\ufffd"
    assert decode(encoding, [*"für".encode(), 256]) == "für<|endoftext|>"
    assert token_bytes(encoding) == [1] * 256 + [0]


def test_unknown_tokenizers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(TokenizerError, match=r"'gtp2'; known: bytes, .*gpt2"):
        open_tokenizer("gtp2")


def sample(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_program_prints_batches_of_every_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_run(tmp_path / "run")
    arguments = ("--prompt", "def ", "--prompt", "class ", "--tokens", 12, "--batch", 2, "--seed", 4, "--json")
    code, out, _ = sample(capsys, tmp_path / "run", *arguments)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["prompt"] for line in lines] == ["def ", "def ", "class ", "class "]
    assert all(line["text"].startswith(line["prompt"]) and line["tokens"] <= 12 for line in lines)
    assert lines[0]["text"] != lines[1]["text"]
    again = [json.loads(line) for line in sample(capsys, checkpoint, *arguments)[1].splitlines()]
    assert [line["text"] for line in again] == [line["text"] for line in lines]


def test_text_goes_to_stdout_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    code, out, err = sample(capsys, tmp_path / "run", "--prompt", "zwölf ", "--tokens", 3, "--greedy")
    assert code == 0
    assert out.startswith("zwölf ")
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "must be at least 1"),
        (["--batch", "0"], "must be at least 1"),
        (["--top-p", "2"], "top_p must be"),
        (["--temperature", "-1"], "temperature must be"),
        (["--tokenizer", "nonesuch"], "no tokenizer is called"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_run(tmp_path / "run")
    code, out, err = sample(capsys, tmp_path / "run", *arguments)
    assert code == 1
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = sample(capsys, tmp_path)
    assert code == 1
    assert "neither a checkpoint" in err

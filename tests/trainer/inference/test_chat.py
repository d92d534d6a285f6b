"""A conversation: what the model reads, what Ctrl-C ends, and the models that are refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.files.small_runs import TINY, write_run
from trainer import sample
from trainer.checkpoints.checkpoint import Snapshot, load_model, write_checkpoint
from trainer.config.task_config import LoraConfig, TaskConfig
from trainer.export import main as export
from trainer.inference import answers as answers_program
from trainer.inference import chat as chat_program
from trainer.inference.chat import Conversation, printable, talk
from trainer.model.generate import Sampling, SamplingError, generate
from trainer.model.gpt import GPT
from trainer.prompt_template import prompt_of
from trainer.tasks.objective import apply_task
from trainer.tokens.tokenizer import open_tokenizer

SHAPE = dataclasses.replace(TINY, context_length=64)
TEMPLATE = "Q: {instruction} A: "
END = 256


def tuned(folder: Path, task: TaskConfig) -> Path:
    """A checkpoint that says it was tuned."""
    torch.manual_seed(5)
    model = GPT(SHAPE)
    apply_task(model, task)
    meta: Any = {"step": 3, "model": dataclasses.asdict(SHAPE), "tokenizer": "bytes", "task": dataclasses.asdict(task)}
    return write_checkpoint(folder, Snapshot(3, model.unpadded_state(), {}, meta))


@pytest.fixture
def conversation(tmp_path: Path) -> Callable[..., Conversation]:
    model, _ = load_model(tuned(tmp_path, TaskConfig("instruct", TEMPLATE)), torch.device("cpu"))

    def made(turns: int = 0, tokens: int = 6) -> Conversation:
        sampling = Sampling(greedy=True)
        encoding = open_tokenizer("bytes")
        return Conversation(model, encoding, TEMPLATE, sampling, tokens, torch.Generator(), turns)

    return made


def ids_of(text: str) -> list[int]:
    return list(prompt_of(TEMPLATE, text, "").encode())


def test_an_answer_is_what_the_model_writes_after_the_template(conversation: Callable[..., Conversation]) -> None:
    talking = conversation()
    said = "".join(talking.answer("Hi"))
    whole = generate(talking.model, torch.tensor([ids_of("Hi")]), 6, Sampling(greedy=True), stop_id=END)[0].tolist()
    assert talking.turns == [[*whole, END] if whole[-1] != END else whole]
    assert said == bytes(each for each in whole[len(ids_of("Hi")) :] if each < 256).decode(errors="replace")


def test_the_model_reads_as_many_turns_as_you_ask_for_and_as_fit(conversation: Callable[..., Conversation]) -> None:
    talking = conversation(turns=2)
    talking.turns = [[1] * 9, [2] * 9, [3] * 9]
    assert talking._remembered(20) == [2] * 9 + [3] * 9
    assert talking._remembered(45) == [3] * 9
    assert talking._remembered(60) == []
    talking.most_turns = 0
    assert talking._remembered(20) == []


def test_what_does_not_fit_is_refused_and_the_conversation_goes_on(conversation: Callable[..., Conversation]) -> None:
    talking, written = conversation(), []
    lines = iter(["x" * 80, "", "Hi"])

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    talk(talking, read, written.append, rates=True)
    assert "tokens, and the model reads 64: say less" in "".join(written)
    assert len(talking.turns) == 1
    assert "tok/s" in written[-1]
    with pytest.raises(SamplingError):
        list(talking.answer("x" * 80))


def test_ctrl_c_ends_the_answer_and_keeps_the_conversation(conversation: Callable[..., Conversation]) -> None:
    talking, written = conversation(tokens=30), []
    events: Any = iter(["Hi", KeyboardInterrupt(), "Ho", EOFError()])

    def read() -> str:
        event = next(events)
        if isinstance(event, BaseException):
            raise event
        return str(event)

    def write(text: str) -> None:
        written.append(text)
        if len(written) == 3:
            raise KeyboardInterrupt

    talk(talking, read, write, rates=False)
    assert " ..." in written
    assert "(Ctrl-D ends the conversation)" in "".join(written)
    assert len(talking.turns) == 2
    assert talking.turns[0][: len(ids_of("Hi"))] == ids_of("Hi")
    assert len(talking.turns[0]) < len(talking.turns[1])


def test_an_answer_steers_no_terminal() -> None:
    assert printable("a\x1b[2J\tb\n") == "a\ufffd[2J\tb\n"


BASE = TaskConfig()
CLASSES = TaskConfig("classify", labels=("ham", "spam"))


@pytest.mark.parametrize(("task", "said"), [(BASE, "let it write with `gptctl sample`"), (CLASSES, "a classifier")])
@pytest.mark.parametrize("program", [chat_program, answers_program])
def test_a_model_that_does_not_answer_is_refused_with_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: Any, task: TaskConfig, said: str
) -> None:
    more = ["--test", "x.json"] if program is answers_program else []
    assert program.main([str(tuned(tmp_path, task)), *more]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_classifier_writes_no_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample.main([str(tuned(tmp_path, CLASSES)), "--prompt", "a"]) == 1
    assert "a classifier writes no text: export it" in capsys.readouterr().err


def test_an_export_still_knows_its_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tuned(tmp_path / "run", TaskConfig("instruct", TEMPLATE, lora=LoraConfig(2, 4.0)))
    assert export([str(checkpoint), "--to", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "gptctl.json").read_text())["task"]["prompt"] == TEMPLATE
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": "Hi", "output": "Ho"}] * 3))
    found = []
    for folder in (checkpoint, tmp_path / "out"):
        capsys.readouterr()
        arguments = ["--test", str(tmp_path / "x.json"), "--batch", "2", "--max-tokens", "5", "--skip", "1"]
        assert answers_program.main([str(folder), *arguments]) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [line.get("number") for line in found[0]] == [None, 1, 2]
    assert [line.get("answer") for line in found[0]] == [line.get("answer") for line in found[1]]


def test_answers_of_a_batch_are_those_of_each_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tuned(tmp_path / "run", TaskConfig("instruct", TEMPLATE))
    words = ["a", "bbb", "c" * 20, "d" * 90]
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": word, "output": "o"} for word in words]))
    found = []
    for batch in ("1", "4"):
        arguments = ["--test", str(tmp_path / "x.json"), "--batch", batch, "--max-tokens", "8"]
        assert answers_program.main([str(checkpoint), *arguments]) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]])
    assert found[0] == found[1]
    assert [line["cut"] for line in found[0]] == [False, False, False, True]


def test_another_template_is_taken_and_one_without_a_place_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(json.dumps([{"instruction": "Hi", "output": "Ho"}]))
    checkpoint = write_run(tmp_path / "run", SHAPE)
    arguments = [str(checkpoint), "--test", str(tmp_path / "x.json"), "--max-tokens", "2"]
    assert answers_program.main([*arguments, "--prompt", TEMPLATE]) == 0
    assert answers_program.main([*arguments, "--prompt", "nothing"]) == 1
    assert "--prompt: must be alpaca, or a text with {instruction} in it" in capsys.readouterr().err

"""Multiple choice: the three accuracies against a plain computation, the format, and what is refused."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.support.files.small_runs import TINY, write_run, write_tokens
from trainer.evaluate import main
from trainer.model.gpt import GPT
from trainer.model.multiple_choice import ChoicesError, read_questions, score_file

QUESTIONS = [
    {"ctx": "def add(a, b):", "endings": ["return a + b", "x", "import os and then something long"], "label": 0},
    {"ctx": "class Dog:", "endings": ["pass", "\u00e9t\u00e9"], "label": "1", "activity_label": "kept out"},
    {"ctx": "", "endings": ["one", "two two two two two two two two two two"], "label": 1},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some_val.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def plain_sum(model: GPT, context: str, ending: str) -> tuple[float, int]:
    """Log probability of the ending and its bytes, one row at a time and without any filling."""
    told = f" {ending}" if context else ending
    before, after = list(context.encode()) or [256], list(told.encode())
    ids = torch.tensor([(before + after)[-(model.config.context_length + 1) :]])
    logs = F.log_softmax(model(ids[:, :-1]).float(), dim=-1)[0]
    scored = min(len(after), ids.shape[1] - 1)
    return sum(logs[at - 1, ids[0, at]].item() for at in range(ids.shape[1] - scored, ids.shape[1])), len(after)


def test_the_accuracies_are_those_of_a_plain_computation(file: Path) -> None:
    torch.manual_seed(3)
    model = GPT(TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # far from uniform, so that endings differ
    right = [0, 0]
    for question in QUESTIONS:
        sums = [plain_sum(model, str(question["ctx"]), ending) for ending in question["endings"]]  # type: ignore[attr-defined]
        right[0] += max(range(len(sums)), key=lambda at: sums[at][0]) == int(str(question["label"]))
        right[1] += max(range(len(sums)), key=lambda at: sums[at][0] / sums[at][1]) == int(str(question["label"]))
    for batch_size in (1, 3):
        found = score_file(
            model, file, "bytes", batch_size=batch_size, autocast=contextlib.nullcontext, on_progress=lambda *_: None
        )
        assert (found["accuracy"], found["accuracy_norm"]) == (right[0] / 3, right[1] / 3)
    assert found["questions"] == 3 and found["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    share = found["accuracy"]
    assert found["accuracy_stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 3))


def test_the_program_scores_a_file_beside_slices(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = write_tokens(tmp_path / "text.safetensors", b"x" * 400)
    write_run(tmp_path / "run", tokens=tokens)
    assert main([str(tmp_path / "run"), "--choices", str(file), "--slice", "0", "64"]) == 0
    checkpoint, choices, a_slice = map(json.loads, capsys.readouterr().out.splitlines())
    assert (checkpoint["kind"], checkpoint["step"]) == ("checkpoint", 7)
    assert (choices["kind"], choices["name"], a_slice["kind"]) == ("choices", "some_val.jsonl", "slice")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no questions found"),
        ("{", "line 1: needs ctx, endings and label"),
        ('{"ctx": "a", "endings": ["b", "c"]}', "line 1: needs ctx, endings and label"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": 2}', "label 2 is outside the 2 endings"),
        ('{"ctx": "a", "endings": ["b"], "label": 0}', "at least two endings"),
        ('{"ctx": "a", "endings": ["b", ""], "label": 0}', "none of them empty"),
        ('{"ctx": 1, "endings": ["b", "c"], "label": 0}', "ctx must be a string"),
    ],
)
def test_what_is_not_in_the_format_is_refused(line: str, said: str) -> None:
    with pytest.raises(ChoicesError, match=said):
        list(read_questions(line.encode(), "f.jsonl"))

"""Multiple choice in HellaSwag's format: which of several endings is the most likely after a context.

A file holds one JSON object per line, {"ctx": str, "endings": [str, ...], "label": int}; further keys are ignored. The
model reads ctx, a space and an ending, and is scored on the ending's tokens alone. There are three
accuracies, because published figures use all of them: `accuracy` takes the ending with the greatest sum of log
probabilities, `accuracy_norm` the one with the greatest sum per byte of text (lm-evaluation-harness),
`accuracy_per_token` per token (llm.c, build-nanogpt). It must not change the model.

Example::

    score_file(model, Path("hellaswag_val.jsonl"), "gpt2", batch_size=8, autocast=nullcontext, on_progress=print)
    {"accuracy": 0.28, "accuracy_norm": 0.31, "questions": 10042, ...}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import tiktoken
import torch
import torch.nn.functional as F

from trainer.model.gpt import GPT
from trainer.model.loss import ALL, Share
from trainer.model.precision import Autocast
from trainer.tokens.tokenizer import open_tokenizer


class ChoicesError(ValueError):
    """A file in another format, or one that the model cannot read. Names the file and the line."""


class Accuracies(TypedDict):
    """Shares of questions answered right, their standard errors, and the share that guessing would reach."""

    accuracy: float
    accuracy_norm: float
    accuracy_per_token: float
    accuracy_stderr: float
    accuracy_norm_stderr: float
    accuracy_per_token_stderr: float
    chance: float
    questions: int
    file_sha256: str
    tokenizer: str


class Question(NamedTuple):
    """A context, its endings as they follow it, and the number of the right one."""

    context: str
    endings: tuple[str, ...]
    label: int


class Row(NamedTuple):
    """One context with one ending, as tokens: the last `scored` of them belong to the ending."""

    ids: list[int]
    scored: int
    size_bytes: int


def score_file(
    model: GPT,
    file: Path,
    tokenizer: str,
    *,
    batch_size: int,
    autocast: Autocast,
    on_progress: Callable[[int, int], object],
    share: Share = ALL,
) -> Accuracies:
    """The accuracies over all questions of the file, with their standard errors and the accuracy of guessing.

    `batch_size` counts questions; every world-th batch is this rank's, and all ranks get the sums. Raises
    ChoicesError, TokenizerError and OSError.
    """
    content = file.read_bytes()
    questions = list(read_questions(content, str(file)))
    encoding = open_tokenizer(tokenizer)
    right = [0, 0, 0]
    model.eval()
    for first in range(share.rank * batch_size, len(questions), share.world * batch_size):
        batch = questions[first : first + batch_size]
        rows = [[_row(encoding, question.context, ending, model) for ending in question.endings] for question in batch]
        sums = iter(_sums(model, [row for group in rows for row in group], autocast))
        for question, group in zip(batch, rows, strict=True):
            for number, picked in enumerate(_picks(group, [next(sums) for _ in group])):
                right[number] += picked == question.label
        on_progress(first + len(batch), len(questions))
    return _result(share.sums(right), questions, hashlib.sha256(content).hexdigest(), tokenizer)


def _result(right: Sequence[float], questions: Sequence[Question], sha256: str, tokenizer: str) -> Accuracies:
    count = len(questions)
    by_sum, by_byte, by_token = (hits / count for hits in right)
    return {
        "accuracy": by_sum,
        "accuracy_norm": by_byte,
        "accuracy_per_token": by_token,
        "accuracy_stderr": _standard_error(by_sum, count),
        "accuracy_norm_stderr": _standard_error(by_byte, count),
        "accuracy_per_token_stderr": _standard_error(by_token, count),
        "chance": sum(1 / len(question.endings) for question in questions) / count,
        "questions": count,
        "file_sha256": sha256,
        "tokenizer": tokenizer,
    }


def _standard_error(share: float, count: int) -> float:
    """Of a share of independent yes-or-no answers."""
    return math.sqrt(share * (1 - share) / count)


def read_questions(content: bytes, where: str) -> Iterator[Question]:
    """Raises ChoicesError for the first invalid line, and for a file without questions."""
    is_empty = True
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            is_empty = False
            yield _question(line, f"{where}, line {number}")
    if is_empty:
        raise ChoicesError(f"{where}: no questions found")


def _question(line: bytes, where: str) -> Question:
    try:
        value = json.loads(line)
        context, endings, label = value["ctx"], value["endings"], int(value["label"])
    except (ValueError, TypeError, KeyError) as error:
        raise ChoicesError(f"{where}: needs ctx, endings and label, as in HellaSwag ({error})") from error
    if (
        not isinstance(context, str)
        or not isinstance(endings, list)
        or not all(isinstance(ending, str) for ending in endings)
    ):
        raise ChoicesError(f"{where}: ctx must be a string and endings a list of strings")
    if len(endings) < 2 or not all(endings):
        raise ChoicesError(f"{where}: needs at least two endings, none of them empty")
    if not 0 <= label < len(endings):
        raise ChoicesError(f"{where}: label {label} is outside the {len(endings)} endings")
    return Question(context, tuple(endings), label)


def _row(encoding: tiktoken.Encoding, context: str, ending: str, model: GPT) -> Row:
    """Cuts the beginning of the context where both together are longer than the model's context."""
    text = f" {ending}" if context else ending
    before = encoding.encode_ordinary(context) or [encoding.eot_token]
    after = encoding.encode_ordinary(text)
    ids = (before + after)[-(model.config.context_length + 1) :]
    if max(ids) >= model.config.vocab_size:
        raise ChoicesError(f"the tokenizer gives id {max(ids)}, but the model knows {model.config.vocab_size} ids")
    return Row(ids, min(len(after), len(ids) - 1), len(text.encode()))


@torch.no_grad()
def _sums(model: GPT, rows: Sequence[Row], autocast: Autocast) -> list[float]:
    """Sum of log probabilities of each row's ending. Short rows are padded at the end, where no score counts."""
    device = next(model.parameters()).device
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    scored = torch.zeros(len(rows), longest - 1)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        scored[number, len(row.ids) - 1 - row.scored : len(row.ids) - 1] = 1
    ids, scored = ids.to(device), scored.to(device)
    with autocast():
        logits = model(ids[:, :-1])
    nats = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view_as(scored)
    sums: list[float] = (-(nats * scored).sum(1)).tolist()
    return sums


def _picks(rows: Sequence[Row], sums: Sequence[float]) -> tuple[int, int, int]:
    """The number of the likeliest ending by sum, per byte and per token; the first where several are equal."""
    by_sum = max(range(len(rows)), key=lambda number: sums[number])
    by_byte = max(range(len(rows)), key=lambda number: sums[number] / rows[number].size_bytes)
    by_token = max(range(len(rows)), key=lambda number: sums[number] / rows[number].scored)
    return by_sum, by_byte, by_token

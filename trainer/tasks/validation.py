"""The loss on held-out examples, by every rank or by one; the same arguments as `validation_loss` of a stream.

Example::

    part = example_loss(model, stream, start=0, tokens=20 * 256, context_length=256, batch_size=8)
    part.mean                                   # nats per counted token; of class_loss per example
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from trainer.model.gpt import GPT
from trainer.model.loss import LossSum, whole_sequences
from trainer.model.precision import Autocast
from trainer.tasks.objective import class_score
from trainer.tokens.batches import TokenStream
from trainer.tokens.example_rows import counted, inputs_and_targets


@torch.no_grad()
def example_loss(
    model: GPT,
    stream: TokenStream,
    start: int,
    tokens: int,
    context_length: int,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    autocast: Autocast = contextlib.nullcontext,
) -> LossSum:
    """This rank's part of the summed loss over the counted tokens of whole rows."""
    nats, targets = 0.0, 0
    with _evaluating(model):
        for ids, wanted in _batches(stream, start, tokens, context_length, place=(rank, world), batch_size=batch_size):
            with autocast():
                loss = model(ids.to(model.device), wanted.to(model.device))
            count = counted(wanted)
            nats, targets = nats + float(loss) * count, targets + count
    return LossSum(nats, targets)


def class_loss(
    model: GPT,
    stream: TokenStream,
    start: int,
    tokens: int,
    context_length: int,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    autocast: Autocast = contextlib.nullcontext,
) -> LossSum:
    """This rank's part of the summed loss over examples, and how many of them get their own class."""
    total = LossSum(0.0, 0)
    with _evaluating(model):
        for ids, wanted in _batches(stream, start, tokens, context_length, place=(rank, world), batch_size=batch_size):
            with autocast():
                part = class_score(model, ids.to(model.device), wanted.to(model.device))
            total = LossSum(total.nats + part.nats, total.targets + part.examples, total.right + part.right)
    return total


@contextlib.contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _batches(
    stream: TokenStream, start: int, tokens: int, length: int, *, place: tuple[int, int], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """ids and targets of every world-th batch of rows; `place`: this rank, and how many there are."""
    rows = whole_sequences(stream, start, tokens, length)
    for first in range(place[0] * batch_size, rows, place[1] * batch_size):
        count = min(batch_size, rows - first)
        window = torch.from_numpy(stream.read(start + first * length, count * length + 1))
        yield inputs_and_targets(window.unfold(0, length + 1, length))

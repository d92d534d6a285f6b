"""The loss on held-out examples, by every rank or by one; the same arguments as `validation_loss` of a stream.

Example::

    part = example_loss(model, stream, start=0, tokens=20 * 256, context_length=256, batch_size=8)
    part.mean                                   # nats per counted token; of a classifier per example
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from trainer.model.gpt import GPT
from trainer.model.loss import LossSum, evaluating, whole_sequences
from trainer.model.precision import Autocast
from trainer.tasks.objective import class_score, is_classifier
from trainer.tokens.batches import counted, inputs_and_targets
from trainer.tokens.token_stream import TokenStream


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
    """This rank's part of the summed loss over the counted tokens of whole rows; of a classifier over examples, with
    how many of them get their own class."""
    nats, targets, right = 0.0, 0, 0
    with evaluating(model):
        for ids, wanted in _batches(stream, start, tokens, context_length, place=(rank, world), batch_size=batch_size):
            with autocast():
                part = _measured(model, ids.to(model.device), wanted.to(model.device))
            nats, targets, right = nats + part.nats, targets + part.targets, right + part.right
    return LossSum(nats, targets, right)


def _measured(model: GPT, ids: torch.Tensor, targets: torch.Tensor) -> LossSum:
    """ids, targets: (batch, time) int64."""
    if is_classifier(model):
        return LossSum(*class_score(model, ids, targets))
    count = counted(targets)
    return LossSum(float(model(ids, targets)) * count, count)


def _batches(
    stream: TokenStream, start: int, tokens: int, length: int, *, place: tuple[int, int], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """ids and targets of every world-th batch of rows; `place`: this rank, and how many there are."""
    rows = whole_sequences(stream, start, tokens, length)
    for first in range(place[0] * batch_size, rows, place[1] * batch_size):
        count = min(batch_size, rows - first)
        window = torch.from_numpy(stream.read(start + first * length, count * length + 1))
        yield inputs_and_targets(window.unfold(0, length + 1, length))

"""The loss of a model on a slice of a token stream; as a program, with perplexity and bits per byte.

The loop calls `validation_loss` on every rank; each takes every world-th batch, the caller adds up. It must not change
the model: the training mode it found is restored.

Example, the reference test of the 163M job::

    python -m trainer.evaluate runs/chinchilla --data validation.safetensors --slice 50000000 19660800
    {"slice": [50000000, 19660800], "loss": 3.41, "perplexity": 30.3, "bits_per_byte": 1.08, ...}
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from trainer.data import DataError, TokenStream

DEFAULT_BATCH_SIZE = 8
Autocast = Callable[[], AbstractContextManager[object]]


class LossSum(NamedTuple):
    """Cross-entropy in nats summed over `targets` predicted tokens. Sums of ranks add up; only the end divides."""

    nats: float
    targets: int

    @property
    def mean(self) -> float:
        """Nats per token; NaN for an empty slice."""
        return self.nats / self.targets if self.targets else math.nan


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module,
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
    """This rank's part of the summed loss over tokens start .. start + tokens, cut into whole sequences.

    `model(ids, targets)` gives the mean loss of a batch. The sequences do not overlap; the target of the last token is
    the one after the slice, and where the stream ends there, the last sequence is left out. One host sync, at the end.
    """
    sequences = whole_sequences(stream, start, tokens, context_length)
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    was_training = model.training
    model.eval()
    for first in range(rank * batch_size, sequences, world * batch_size):
        count = min(batch_size, sequences - first)
        window = torch.from_numpy(stream.read(start + first * context_length, count * context_length + 1)).to(device)
        with autocast():
            loss = model(window[:-1].view(count, -1), window[1:].view(count, -1))
        total += loss.double() * (count * context_length)
        targets += count * context_length
    model.train(was_training)
    return LossSum(float(total), targets)


def whole_sequences(stream: TokenStream, start: int, tokens: int, context_length: int) -> int:
    """How many sequences of context_length, each with its targets, lie in the slice. Raises DataError for none."""
    available = min(tokens, len(stream) - start - 1)
    if start < 0 or available < context_length:
        raise DataError(
            f"slice {start} +{tokens} of {stream.shards[0].path} (and any further files) holds no whole sequence of "
            f"{context_length} tokens and its targets: there are {len(stream)} tokens"
        )
    return available // context_length

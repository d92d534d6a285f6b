"""The loss of a model on slices of a token stream, by every rank or by one. It restores the model's training mode.

The loop calls `validation_loss` on every rank; each takes every world-th batch, and the caller adds up.

Example::

    part = validation_loss(model, stream, start=0, tokens=19_660_800, context_length=1024, batch_size=8)
    part.mean                                   # nats per token
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from trainer.model.gpt import GPT
from trainer.model.precision import Autocast
from trainer.run_files import SliceLoss
from trainer.tokens.token_file import DataError
from trainer.tokens.token_stream import TokenStream
from trainer.tokens.tokenizer import TokenizerError, open_tokenizer, token_bytes

READ_TOKENS = 4_194_304
"""Tokens hashed at once: 48 MB of memory."""
PIECE_BATCHES = 32
"""Batches of `measure_slice` between two progress reports."""


class LossSum(NamedTuple):
    """Cross-entropy in nats summed over `targets` predicted tokens. Sums of ranks add up; divide only at the end."""

    nats: float
    targets: int
    right: int = 0
    """Of a classifier: examples whose class it names."""

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
    together: bool = False,
) -> LossSum:
    """This rank's part of the summed loss over tokens start .. start + tokens, cut into whole sequences.

    `model(ids, targets)` gives the mean loss of a batch. The sequences do not overlap; the target of the last token is
    the one after the slice, and where the stream ends there, the last sequence is omitted. One host sync, at the end.
    together: the ranks compute each pass together (FSDP): one without a batch repeats the first and does not count it.
    """
    sequences = whole_sequences(stream, start, tokens, context_length)
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    with evaluating(model):
        for turn in range(0, sequences, world * batch_size):
            counts = turn + rank * batch_size < sequences
            if not counts and not together:
                break
            first = turn + rank * batch_size if counts else 0
            count = min(batch_size, sequences - first)
            window = stream.read(start + first * context_length, count * context_length + 1)
            ids = torch.from_numpy(window).to(device)
            with autocast():
                loss = model(ids[:-1].view(count, -1), ids[1:].view(count, -1))
            if counts:
                total += loss.double() * (count * context_length)
                targets += count * context_length
    return LossSum(float(total), targets)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; afterwards the model is in the mode it was in, also where measuring failed."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def whole_sequences(stream: TokenStream, start: int, tokens: int, context_length: int) -> int:
    """The number of sequences of context_length, each with its targets, in the slice. Raises DataError for none."""
    available = min(tokens, len(stream) - start - 1)
    if start < 0 or available < context_length:
        raise DataError(
            f"slice {start} +{tokens} of {stream.shards[0].path} (and any further files) holds no whole sequence of "
            f"{context_length} tokens and its targets: there are {len(stream)} tokens"
        )
    return available // context_length


def target_bytes(stream: TokenStream, start: int, targets: int, tokenizer: str) -> int:
    """Bytes of text in the predicted tokens; marks such as end-of-text have none. Raises TokenizerError."""
    lengths = np.array(token_bytes(open_tokenizer(tokenizer)))
    ids = stream.read(start + 1, targets)
    if ids.max() >= len(lengths):
        raise TokenizerError(f"the data has id {ids.max()}, but tokenizer {tokenizer} has only {len(lengths)} ids")
    return int(lengths[ids].sum())


class Slice(NamedTuple):
    """Tokens start .. start + tokens of a stream."""

    stream: TokenStream
    start: int
    tokens: int


def slice_result(token_slice: Slice, summed: LossSum, tokenizer: str, say: Callable[[str], object]) -> SliceLoss:
    """The loss of a slice with its perplexity and bits per byte (nats / ln 2 / bytes of text).

    Calls `say` with the reason where bits per byte are unknown.
    """
    return {
        "slice": [token_slice.start, token_slice.tokens],
        "tokens": summed.targets,
        "tokens_sha256": tokens_sha256(token_slice.stream, token_slice.start, summed.targets + 1),
        "loss": summed.mean,
        "perplexity": math.exp(min(summed.mean, 700.0)),  # exp(710) is beyond a float
        "bits_per_byte": _bits_per_byte(summed, token_slice, tokenizer, say),
        "tokenizer": tokenizer,
    }


def tokens_sha256(stream: TokenStream, start: int, count: int) -> str:
    """sha256 of these ids as little-endian uint32, whatever kind of file they come from."""
    digest = hashlib.sha256()
    for first in range(start, start + count, READ_TOKENS):
        ids = stream.read(first, min(READ_TOKENS, start + count - first))
        digest.update(ids.astype("<u4").tobytes())
    return digest.hexdigest()


def _bits_per_byte(summed: LossSum, token_slice: Slice, tokenizer: str, say: Callable[[str], object]) -> float | None:
    """None where the text's length is unknown: the loss does not depend on a vocabulary."""
    try:
        size_bytes = target_bytes(token_slice.stream, token_slice.start, summed.targets, tokenizer)
    except TokenizerError as error:
        say(f"no bits per byte: {error}")
        return None
    return summed.nats / math.log(2) / size_bytes if size_bytes else None


class Share(NamedTuple):
    """One rank's part of a measurement, and how the ranks add up what they found."""

    rank: int = 0
    world: int = 1
    sums: Callable[[Sequence[float]], list[float]] = list


ALL = Share()
"""Of one rank alone: everything."""


def measure_slice(
    model: GPT,
    token_slice: Slice,
    batch_size: int,
    autocast: Autocast,
    on_progress: Callable[[int, int], object],
    *,
    share: Share = ALL,
) -> LossSum:
    """The loss on a slice, in pieces, with `on_progress(tokens done, of)` after each.

    The batches are those of one rank, dealt to all: their sum is the same, but for the order of the additions in double
    precision.
    """
    length = model.config.context_length
    whole = whole_sequences(token_slice.stream, token_slice.start, token_slice.tokens, length) * length
    piece = PIECE_BATCHES * batch_size * length * share.world
    total = LossSum(0.0, 0)
    for first in range(0, whole, piece):
        tokens = min(piece, whole - first)
        part = validation_loss(
            model,
            token_slice.stream,
            token_slice.start + first,
            tokens,
            length,
            batch_size=batch_size,
            rank=share.rank,
            world=share.world,
            autocast=autocast,
        )
        nats, targets = share.sums([part.nats, part.targets])
        total = LossSum(total.nats + nats, total.targets + int(targets))
        on_progress(total.targets, whole)
    return total

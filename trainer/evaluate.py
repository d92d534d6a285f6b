"""The loss of a model on a slice of a token stream; as a program, with perplexity and bits per byte.

The loop calls `validation_loss` on every rank; each takes every world-th batch, the caller adds up. It must not change
the model: the training mode it found is restored.

Example, the reference test of the 163M job::

    python -m trainer.evaluate runs/chinchilla --data validation.safetensors --slice 50000000 19660800
    {"kind": "checkpoint", "step": 33165, ...}
    {"kind": "slice", "slice": [50000000, 19660800], "loss": 3.41, "perplexity": 30.3, "bits_per_byte": 1.08, ...}
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trainer.checkpoints.checkpoint import load_model
from trainer.checkpoints.manifest import CheckpointError, checkpoint_folder
from trainer.contract import CONFIG, ContractError, DataConfig, RunConfig
from trainer.model.gpt import GPT
from trainer.model.multiple_choice import ChoicesError, score_file
from trainer.tokens.batches import TokenStream
from trainer.tokens.token_file import DataError
from trainer.tokens.tokenizer import TokenizerError, open_tokenizer, token_bytes

Autocast = Callable[[], AbstractContextManager[object]]

READ_TOKENS = 4_194_304
"""Of the digest: 48 MB of memory at once."""
PIECE_BATCHES = 32
SAY_EVERY_S = 2.0


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


def target_bytes(stream: TokenStream, start: int, targets: int, tokenizer: str) -> int:
    """Bytes of text in the predicted tokens; marks such as end-of-text count none. Raises TokenizerError."""
    lengths = np.array(token_bytes(open_tokenizer(tokenizer)))
    ids = stream.read(start + 1, targets)
    if ids.max() >= len(lengths):
        raise TokenizerError(f"the data has id {ids.max()}, but tokenizer {tokenizer} has only {len(lengths)} ids")
    return int(lengths[ids].sum())


class Slice(NamedTuple):
    """Tokens start .. start + tokens of a stream, as somebody asked for them."""

    stream: TokenStream
    start: int
    tokens: int


def slice_result(asked: Slice, summed: LossSum, tokenizer: str, say: Callable[[str], object]) -> dict[str, Any]:
    """What is reported of a slice. `tokens_sha256` names the very tokens that were predicted: two losses compare only
    where it is equal. Why there are no bits per byte is said."""
    return {
        "slice": [asked.start, asked.tokens],
        "tokens": summed.targets,
        "tokens_sha256": tokens_sha256(asked.stream, asked.start, summed.targets + 1),
        "loss": summed.mean,
        "perplexity": math.exp(min(summed.mean, 700.0)),  # exp(710) is beyond a float
        "bits_per_byte": _bits_per_byte(summed, asked, tokenizer, say),
        "tokenizer": tokenizer,
    }


def tokens_sha256(stream: TokenStream, start: int, count: int) -> str:
    """sha256 of these ids as little-endian uint32, whatever kind of file they lie in."""
    digest = hashlib.sha256()
    for first in range(start, start + count, READ_TOKENS):
        ids = stream.read(first, min(READ_TOKENS, start + count - first))
        digest.update(ids.astype("<u4").tobytes())
    return digest.hexdigest()


def _bits_per_byte(summed: LossSum, asked: Slice, tokenizer: str, say: Callable[[str], object]) -> float | None:
    """None where the text's length is unknown: the loss must not be lost because a vocabulary cannot be downloaded."""
    try:
        size_bytes = target_bytes(asked.stream, asked.start, summed.targets, tokenizer)
    except TokenizerError as error:
        say(f"no bits per byte: {error}")
        return None
    return summed.nats / math.log(2) / size_bytes if size_bytes else None


def sliced_loss(
    model: GPT, asked: Slice, batch_size: int, autocast: Autocast, on_progress: Callable[[int, int], object]
) -> LossSum:
    """The loss on a slice, in pieces, with `on_progress(tokens done, of)` after each."""
    length = model.config.context_length
    whole = whole_sequences(asked.stream, asked.start, asked.tokens, length) * length
    total = LossSum(0.0, 0)
    for first in range(0, whole, PIECE_BATCHES * batch_size * length):
        tokens = min(PIECE_BATCHES * batch_size * length, whole - first)
        part = validation_loss(
            model, asked.stream, asked.start + first, tokens, length, batch_size=batch_size, autocast=autocast
        )
        total = LossSum(total.nats + part.nats, total.targets + part.targets)
        on_progress(total.targets, whole)
    return total


def _evaluate_slice(model: GPT, asked_slice: Slice, asked: argparse.Namespace) -> None:
    """Prints one line of JSON."""
    began, meter = time.monotonic(), Meter(f"slice {asked_slice.start}+{asked_slice.tokens}", "tokens")
    summed = sliced_loss(model, asked_slice, asked.batch_size, autocast_of(asked), meter)
    result = slice_result(asked_slice, summed, asked.tokenizer, _complain)
    spent = {"precision": asked.precision, "device": asked.device, "seconds": round(time.monotonic() - began, 3)}
    print(json.dumps({"kind": "slice", **result, **spent}), flush=True)


class Meter:
    """Progress as JSON lines on stdout, a few seconds apart: `{"progress": "slice 0+9", "done", "of", "unit"}`."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.said_at = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        if time.monotonic() - self.said_at >= SAY_EVERY_S:
            self.said_at = time.monotonic()
            print(json.dumps({"progress": self.what, "done": done, "of": of, "unit": self.unit}), flush=True)


def _complain(text: str) -> None:
    print(f"evaluate: {text}", file=sys.stderr)


def autocast_of(asked: argparse.Namespace) -> Autocast:
    """What --precision and --device ask for."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if asked.precision not in kinds:
        return contextlib.nullcontext
    return lambda: torch.autocast(torch.device(asked.device).type, dtype=kinds[asked.precision])


def _data_files(asked: argparse.Namespace) -> list[Path]:
    """The files named, else those of the run that the checkpoint lies in: validation, or what it trained on."""
    if asked.data:
        return list(asked.data)
    run_folder = checkpoint_folder(asked.folder).parent.parent
    data = RunConfig.from_json((run_folder / CONFIG).read_text()).data if (run_folder / CONFIG).is_file() else None
    files = (data.validation_files or data.train_files) if data is not None else ()
    if not files:
        raise DataError(f"{asked.folder} names no token files; give them with --data FILE...")
    return [Path(file) for file in files]


def _run(asked: argparse.Namespace) -> None:
    model, meta = load_model(asked.folder, torch.device(asked.device))
    asked.tokenizer = asked.tokenizer or meta.get("tokenizer") or DataConfig.tokenizer
    print(json.dumps({"kind": "checkpoint", "step": meta.get("step"), "torch": torch.__version__}), flush=True)
    for file in asked.choices:
        scored = score_file(
            model,
            file,
            asked.tokenizer,
            batch_size=asked.batch_size,
            autocast=autocast_of(asked),
            on_progress=Meter(f"choices {file.name}", "questions"),
        )
        result = {"name": file.name, **scored, "precision": asked.precision, "device": asked.device}
        print(json.dumps({"kind": "choices", **result}), flush=True)
    if asked.slice or not asked.choices:
        stream = TokenStream.open(_data_files(asked), model.config.vocab_size)
        whole = (0, len(stream)) if not asked.held_out else (max(0, len(stream) - asked.held_out - 1), asked.held_out)
        for start, tokens in asked.slice or [whole]:
            _evaluate_slice(model, Slice(stream, start, tokens), asked)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate", description="Loss on slices of token files, and multiple choice."
    )
    parser.add_argument("folder", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run (its best checkpoint) or one")
    parser.add_argument("--data", type=Path, nargs="+", metavar="FILE", help="token files (default: the run's own)")
    parser.add_argument(
        "--slice", type=int, nargs=2, action="append", metavar=("START", "COUNT"), help="repeatable; default: all"
    )
    parser.add_argument("--held-out", type=int, default=0, metavar="COUNT", help="instead: the last COUNT tokens")
    parser.add_argument(
        "--choices", type=Path, action="append", default=[], metavar="FILE.jsonl", help="multiple choice; repeatable"
    )
    parser.add_argument("--tokenizer", help="for bits per byte (default: the run's)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per forward pass (default: 8)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 with one line of JSON per slice and file of choices on stdout, 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, ChoicesError, ContractError, DataError, TokenizerError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

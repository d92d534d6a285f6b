"""The loss of a model on a slice of a token stream; as a program, with perplexity and bits per byte.

The loop calls `validation_loss` on every rank; each takes every world-th batch, the caller adds up. It must not change
the model: the training mode it found is restored.

Example, the reference test of the 163M job::

    python -m trainer.evaluate runs/chinchilla --data validation.safetensors --slice 50000000 19660800
    {"slice": [50000000, 19660800], "loss": 3.41, "perplexity": 30.3, "bits_per_byte": 1.08, ...}
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from trainer.checkpoint import load_model
from trainer.contract import CONFIG, ContractError, DataConfig, RunConfig
from trainer.data import TokenStream
from trainer.manifest import CheckpointError, checkpoint_folder
from trainer.model import GPT
from trainer.token_file import DataError
from trainer.tokenizer import TokenizerError, open_tokenizer, token_bytes

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


def target_bytes(stream: TokenStream, start: int, targets: int, tokenizer: str) -> int:
    """Bytes of text in the predicted tokens; marks such as end-of-text count none. Raises TokenizerError."""
    lengths = np.array(token_bytes(open_tokenizer(tokenizer)))
    ids = stream.read(start + 1, targets)
    if ids.max() >= len(lengths):
        raise TokenizerError(f"the data has id {ids.max()}, but tokenizer {tokenizer} has only {len(lengths)} ids")
    return int(lengths[ids].sum())


def _bits_per_byte(summed: LossSum, stream: TokenStream, start: int, tokenizer: str) -> float | None:
    """None where the text's length is unknown: the loss must not be lost because a vocabulary cannot be downloaded."""
    try:
        size_bytes = target_bytes(stream, start, summed.targets, tokenizer)
    except TokenizerError as error:
        print(f"evaluate: no bits per byte: {error}", file=sys.stderr)
        return None
    return summed.nats / math.log(2) / size_bytes if size_bytes else None


def _evaluate_slice(model: GPT, stream: TokenStream, start: int, tokens: int, asked: argparse.Namespace) -> None:
    """Prints one line of JSON."""
    began = time.monotonic()
    summed = validation_loss(
        model,
        stream,
        start,
        tokens,
        model.config.context_length,
        batch_size=asked.batch_size,
        autocast=_autocast(asked),
    )
    result = {
        "slice": [start, tokens],
        "tokens": summed.targets,
        "loss": summed.mean,
        "perplexity": math.exp(min(summed.mean, 700.0)),  # exp(710) is beyond a float
        "bits_per_byte": _bits_per_byte(summed, stream, start, asked.tokenizer),
        "precision": asked.precision,
        "seconds": round(time.monotonic() - began, 3),
    }
    print(json.dumps(result), flush=True)


def _autocast(asked: argparse.Namespace) -> Autocast:
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
    stream = TokenStream.open(_data_files(asked), model.config.vocab_size)
    for start, tokens in asked.slice or [(0, len(stream))]:
        _evaluate_slice(model, stream, start, tokens, asked)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluate", description="Loss on slices of token files.")
    parser.add_argument("folder", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run (its best checkpoint) or one")
    parser.add_argument("--data", type=Path, nargs="+", metavar="FILE", help="token files (default: the run's own)")
    parser.add_argument(
        "--slice", type=int, nargs=2, action="append", metavar=("START", "COUNT"), help="repeatable; default: all"
    )
    parser.add_argument("--tokenizer", help="for bits per byte (default: the run's)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per forward pass (default: 8)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 with one line of JSON per slice on stdout, 1 with the reason on stderr."""
    try:
        _run(_parse(arguments))
    except (CheckpointError, ContractError, DataError, TokenizerError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

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
import json
import sys
import time
from pathlib import Path

import torch

from trainer.checkpoints.checkpoint import load_model
from trainer.checkpoints.manifest import CheckpointError, checkpoint_folder
from trainer.contract import CONFIG, ContractError, DataConfig, RunConfig
from trainer.model.gpt import GPT
from trainer.model.loss import Autocast, Slice, slice_result, sliced_loss
from trainer.model.multiple_choice import ChoicesError, score_file
from trainer.tokens.batches import TokenStream
from trainer.tokens.token_file import DataError
from trainer.tokens.tokenizer import TokenizerError

SAY_EVERY_S = 2.0


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

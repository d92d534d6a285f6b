"""The arguments that programs with a model share: which checkpoint, which tokenizer, which device.

Example::

    parser = argparse.ArgumentParser(prog="python -m trainer.sample")
    add_model_arguments(parser)
    model = load_chosen_model(parser.parse_args())
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.checkpoints.checkpoint import load_model
from trainer.checkpoints.manifest import CheckpointError, tokenizer_name
from trainer.model.gpt import GPT
from trainer.tasks.objective import is_classifier

WRITES_NO_TEXT = (
    "a classifier writes no text: export it (gptctl export), and transformers' pipeline('text-classification') reads "
    "texts with it"
)


class ChosenModel(NamedTuple):
    """A model in evaluation mode on its device, the tokenizer to use with it, and the step of its checkpoint."""

    model: GPT
    tokenizer: str
    step: int | None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds RUN_OR_CHECKPOINT, --tokenizer and --device."""
    parser.add_argument(
        "folder", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run (its best checkpoint) or a checkpoint folder"
    )
    parser.add_argument("--tokenizer", help="bytes or a tiktoken name (default: the checkpoint's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def load_chosen_model(options: argparse.Namespace) -> ChosenModel:
    """Loads what add_model_arguments parsed. Raises CheckpointError."""
    model, meta = load_model(options.folder, torch.device(options.device))
    return ChosenModel(model, tokenizer_name(meta, options.tokenizer), meta.get("step"))


def load_writing_model(options: argparse.Namespace) -> ChosenModel:
    """As load_chosen_model. Raises CheckpointError for a classifier, whose head for tokens was never trained."""
    chosen = load_chosen_model(options)
    if is_classifier(chosen.model):
        raise CheckpointError(f"{options.folder}: {WRITES_NO_TEXT}")
    return chosen

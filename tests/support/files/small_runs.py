"""Small real things for the trainer's tests: text as token files, and checkpoints of small models."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from trainer.checkpoints.checkpoint import Snapshot, write_checkpoint
from trainer.contract import DataConfig, ModelConfig, RunConfig
from trainer.model.gpt import GPT
from trainer.run_files import CHECKPOINTS, CONFIG, LATEST

TINY = ModelConfig(vocab_size=257, context_length=32, n_layer=2, n_head=2, n_embd=32)


def write_tokens(path: Path, ids: list[int] | bytes) -> Path:
    """A safetensors file with one uint16 tensor `tokens`."""
    save_file({"tokens": np.array(list(ids), dtype=np.uint16)}, path)
    return path


def python_source(size_bytes: int) -> bytes:
    """Real text: the beginning of a few long modules of the standard library."""
    names = ("argparse.py", "ast.py", "datetime.py", "decimal.py", "difflib.py", "inspect.py", "typing.py")
    folder = Path(dataclasses.__file__).parent
    return b"".join((folder / name).read_bytes() for name in names)[:size_bytes]


def write_run(folder: Path, config: ModelConfig = TINY, tokens: Path | None = None, step: int = 7) -> Path:
    """A run folder with one checkpoint of an untrained model, as the trainer leaves it; returns the checkpoint."""
    torch.manual_seed(3)
    model = GPT(config)
    meta = {"step": step, "model": dataclasses.asdict(config), "tokenizer": "bytes"}
    checkpoint = write_checkpoint(folder / CHECKPOINTS, Snapshot(step, model.unpadded_state(), {}, meta))
    (folder / CHECKPOINTS / LATEST).symlink_to(checkpoint.name)
    data = DataConfig(train_files=(str(tokens),) if tokens else (), tokenizer="bytes")
    (folder / CONFIG).write_text(RunConfig(model=config, data=data).to_json())
    return checkpoint

"""The smallest model that trains: bytes, one layer, some milliseconds a step. Recipes that tests write, and their data.

write_small(tmp_path, steps=20, every=10)        # tmp_path/tiny.toml, tmp_path/corpus/train.bin
"""

from __future__ import annotations

from pathlib import Path

SMALL = """
[model]
vocab_size = 257
context_length = 32
n_layer = 1
n_head = 2
n_embd = 32
"""
SIMULATED = "8xA100-40GB-simulated"
TOKENS_PER_STEP = 256
RECIPE = """
[data]
source = "{data}"
tokenizer = "bytes"
[data.validation]
tokens = 2_048
[train]
tokens = {tokens}
global_batch = 8
precision = "fp32"
log_every = 5
checkpoint_every = {every}
validate_every = {every}
[machines.{machine}]
micro_batch = 4
"""


def write_small(folder: Path, *, steps: int, every: int, machine: str = SIMULATED) -> None:
    """tiny.toml, with a checkpoint and a validation every so many steps, and a megabyte of data for it."""
    write_tokens(folder / "corpus" / "train.bin", 1_000_000)
    more = RECIPE.format(data=folder / "corpus", tokens=steps * TOKENS_PER_STEP, every=every, machine=machine)
    (folder / "tiny.toml").write_text(f'name = "tiny"{SMALL}{more}')


def write_tokens(path: Path, size_bytes: int) -> None:
    """A file of 16-bit ids below 250, as nanoGPT writes them; of whole periods, so that it may be a little smaller."""
    period = bytes(byte for value in range(250) for byte in (value, 0))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(period * (size_bytes // len(period)))

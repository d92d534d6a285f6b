"""Datasets that are files on this machine: which shards a source names, and how many tokens they hold.

Reads headers only, with the standard library: the laptop needs no numpy to plan. Formats are detected as the trainer
does: by magic, then by suffix.

Example: `resolve(Path("~/data/fineweb"))` -> Dataset(train=[...], validation=[...])
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.datasets.token_layout import FIRST_BYTES, SUFFIXES, header_bytes, layout_of
from orchestrator.core.errors import UserError

PREPARED = "dataset.json"
"""Beside the shards where `data prepare` made them."""


@dataclass(frozen=True)
class Shard:
    """One token file; `tokens` is its length in tokens."""

    path: Path
    size_bytes: int
    tokens: int


@dataclass(frozen=True)
class Dataset:
    """A resolved source, shards in name order. No validation files: the slice is held out of the training stream."""

    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]

    @property
    def train_tokens(self) -> int:
        return sum(shard.tokens for shard in self.train)

    @property
    def validation_tokens(self) -> int:
        return sum(shard.tokens for shard in self.validation)


def resolve(source: Path) -> Dataset:
    """The shards of a file or folder: train*, val* by stem, .safetensors or .bin. UserError when there are none."""
    if source.is_file():
        return Dataset((_shard(source),), ())
    if not source.is_dir():
        raise UserError(f"data.source: {source} does not exist", "set data.source to a file or folder of tokens")
    files = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES and path.is_file())
    train = tuple(_shard(path) for path in files if path.stem.startswith("train"))
    validation = tuple(_shard(path) for path in files if path.stem.startswith("val"))
    if not train:
        found = ", ".join(path.name for path in files[:5]) or "no .safetensors or .bin file"
        raise UserError(
            f"data.source: {source} has no train*.safetensors or train*.bin (found: {found})",
            "name the training shards train*, the validation shards val*",
        )
    return Dataset(train, validation)


def documents(dataset: Dataset) -> int | None:
    """How many documents the dataset was made of; None unless `gptctl data prepare` made it."""
    try:
        prepared = json.loads((dataset.train[0].path.parent / PREPARED).read_text(encoding="utf-8"))
        return int(prepared["documents"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def digest(shards: tuple[Shard, ...], known: dict[str, str]) -> str:
    """The dataset's identity: sha256 over names and contents, 16 hex digits. `known` caches contents by path, size and
    modification time, so that an unchanged dataset is never read twice."""
    whole = hashlib.sha256()
    for shard in shards:
        status = shard.path.stat()
        key = f"{shard.path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        if key not in known:
            with shard.path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{shard.path.name}\0{known[key]}\n".encode())
    return whole.hexdigest()[:16]


def _shard(path: Path) -> Shard:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(FIRST_BYTES)
        head += file.read(max(0, header_bytes(path.name, head) - len(head)))
    return Shard(path, size, layout_of(str(path), size, head).tokens)

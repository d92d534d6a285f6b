"""Datasets that are files on this machine: which shards a source names, and how many tokens they hold.

Reads headers only, with the standard library: the laptop needs no numpy to plan. Formats are detected as the trainer
does: by magic, then by suffix.

Example: `resolve(Path("~/data/fineweb"))` -> Dataset(train=[...], validation=[...])
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import UserError

SUFFIXES = (".safetensors", ".bin")
LLM_C_MAGIC = 20240520
LLM_C_HEADER_BYTES = 1024
TOKEN_BYTES = {"U16": 2, "U32": 4, "I32": 4}
PREPARED = "dataset.json"
"""Beside the shards where `data prepare` made them."""
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses larger headers too."""


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


def described(dataset: Dataset, identity: str) -> dict[str, object]:
    """What is known of a dataset, for the run's record and the model card: counts, its digest, and where the folder
    was prepared by gptctl also the number of documents."""
    facts: dict[str, object] = {
        "train_tokens": dataset.train_tokens,
        "validation_tokens": dataset.validation_tokens or None,
        "digest": identity,
    }
    try:
        prepared = json.loads((dataset.train[0].path.parent / PREPARED).read_text(encoding="utf-8"))
        return {**facts, "documents": int(prepared["documents"])}
    except (OSError, ValueError, KeyError, TypeError):
        return facts


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
    tokens = _safetensors_tokens(path, size) if path.suffix == ".safetensors" else _bin_tokens(path, size)
    if tokens == 0:
        raise UserError(f"data.source: {path} holds no tokens", "prepare the dataset again")
    return Shard(path, size, tokens)


def _bin_tokens(path: Path, size_bytes: int) -> int:
    with path.open("rb") as file:
        head = file.read(12)
    if len(head) == 12 and struct.unpack("<3i", head)[0] == LLM_C_MAGIC:
        tokens = struct.unpack("<3i", head)[2]
        if size_bytes != LLM_C_HEADER_BYTES + 2 * tokens:
            raise UserError(
                f"data.source: {path} says {tokens} tokens but has {size_bytes} bytes",
                "the file is truncated: copy it again",
            )
        return int(tokens)
    if size_bytes % 2:
        raise UserError(f"data.source: {path} has an odd size of {size_bytes} bytes", "uint16 tokens take two bytes")
    return size_bytes // 2


def _safetensors_tokens(path: Path, size_bytes: int) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 0 < length <= min(size_bytes - 8, MAX_HEADER_BYTES):
            raise UserError(f"data.source: {path} is no safetensors file", "check that the download is complete")
        try:
            tensor = json.loads(file.read(length))["tokens"]
            width, (start, stop) = TOKEN_BYTES[tensor["dtype"]], tensor["data_offsets"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"data.source: {path} has no 1-D `tokens` tensor of uint16, uint32 or int32",
                "see docs/trainer.md for the formats",
            ) from error
    if size_bytes != 8 + length + stop:
        raise UserError(
            f"data.source: {path} has {size_bytes} bytes where its header needs {8 + length + stop}",
            "the file is truncated: copy it again",
        )
    return int((stop - start) // width)

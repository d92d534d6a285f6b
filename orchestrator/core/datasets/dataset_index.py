"""dataset.json as a reader sees it: which files a prepared dataset has, with digests of the whole and of its blocks.

Pure: takes bytes. `gptctl data prepare` writes it; its publisher may have changed it, so nothing in it is
believed but as a promise that the bytes must keep.

Example: `read_index(content, "s3://bucket/x")["train-00000.bin"].blocks.size_bytes` -> 16777216
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.core.errors import StorageError
from orchestrator.core.safe_names import checked
from orchestrator.core.typed_json import decode, parse

DATASET = "dataset.json"
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Blocks:
    """sha256 of every stretch of size_bytes of a file, the last one shorter."""

    size_bytes: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Promised:
    """What dataset.json says of one file."""

    size_bytes: int
    sha256: str | None = None
    blocks: Blocks | None = None


@dataclass(frozen=True)
class _Entry:
    size_bytes: int
    sha256: str | None = None
    blocks: tuple[str, ...] | None = None
    block_size_bytes: int | None = None


@dataclass(frozen=True)
class _Index:
    files: Mapping[str, _Entry]
    block_size_bytes: int = 0


def read_index(content: bytes, where: str) -> dict[str, Promised]:
    """File name -> promise, names checked. Raises StorageError for a damaged one, UserError for names that lead out."""
    try:
        index = decode(_Index, parse(content))
        promises = {name: _promised(entry, index.block_size_bytes) for name, entry in sorted(index.files.items())}
    except ValueError as error:
        raise StorageError(f"{where}: its {DATASET} is damaged: {error}", "prepare the data again") from error
    return {checked(name, f"{DATASET} of {where}"): promise for name, promise in promises.items()}


def _promised(entry: _Entry, usual_block_bytes: int) -> Promised:
    if entry.sha256 is not None and not SHA256.fullmatch(entry.sha256):
        raise ValueError(f"{entry.sha256!r} is not a sha256")
    if entry.blocks is None:
        return Promised(entry.size_bytes, entry.sha256)
    block_bytes = entry.block_size_bytes or usual_block_bytes
    fits = block_bytes >= 1 and len(entry.blocks) == -(-entry.size_bytes // block_bytes)
    if not fits or not all(map(SHA256.fullmatch, entry.blocks)):
        raise ValueError("a block list that does not fit its file")
    return Promised(entry.size_bytes, entry.sha256, Blocks(block_bytes, entry.blocks))

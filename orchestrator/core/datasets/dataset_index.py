"""dataset.json as a reader sees it: which files a prepared dataset has, with digests of the whole and of its blocks.

Pure: takes bytes. `gptctl data prepare` writes it; whoever publishes a dataset may have changed it, so nothing in it is
believed but as a promise that the bytes must keep.

Example: `read_index(content, "s3://bucket/x")["train-00000.bin"].blocks.size_bytes` -> 16777216
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.core.errors import StorageError
from orchestrator.core.safe_names import checked

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


def read_index(content: bytes, where: str) -> dict[str, Promised]:
    """File name -> promise, names checked. Raises StorageError for a damaged one, UserError for names that lead out."""
    try:
        value = json.loads(content)
        files = value["files"]
        return {
            checked(str(name), f"{DATASET} of {where}"): _promised(entry, value)
            for name, entry in sorted(files.items())
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{where}: its {DATASET} is damaged: {error!r}", "prepare the data again") from error


def _promised(entry: Mapping[str, Any], index: Mapping[str, Any]) -> Promised:
    size = int(entry["size_bytes"])
    sha256, listed = entry.get("sha256"), entry.get("blocks")
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise ValueError(f"{sha256!r} is no sha256")
    if listed is None:
        return Promised(size, sha256)
    block_bytes = int(entry.get("block_size_bytes") or index["block_size_bytes"])
    if block_bytes < 1 or len(listed) != -(-size // block_bytes) or not all(map(SHA256.fullmatch, listed)):
        raise ValueError("a block list that does not fit its file")
    return Promised(size, sha256, Blocks(block_bytes, tuple(listed)))

"""Token files on this computer as an identity: the digest over their names and contents, and what made them.

Example: `digest([("train.bin", Path("data/train.bin"))], known={})` -> "9f86d081884c7d65"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.typed_json import parse

PREPARED = "dataset.json"
"""Beside the shards where `data prepare` made them."""


def documents(folder: Path) -> int | None:
    """How many documents the dataset was made of; None unless `gptctl data prepare` made it."""
    try:
        prepared = parse((folder / PREPARED).read_text(encoding="utf-8"))
        return int(prepared["documents"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def digest(files: Sequence[tuple[str, Path]], known: dict[str, str]) -> str:
    """The dataset's identity: sha256 over names and contents, 16 hex digits. `known` caches contents by path, size and
    modification time, so that an unchanged dataset is never read twice."""
    whole = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        if key not in known:
            with path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{name}\0{known[key]}\n".encode())
    return whole.hexdigest()[:16]

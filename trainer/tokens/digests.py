"""dataset.json and what it says about a file's bytes: its sha256, and that of each 16 MiB block, which locates damage.

Standard library only. Own code, because hashlib has no block lists. It must not know what the bytes mean.

Example::

    digest = Digest()
    digest.update(first); digest.update(second)
    digest.entry()            # {"size_bytes": ..., "sha256": ..., "blocks": [...], "block_size_bytes": 16777216}
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

DATASET = "dataset.json"
BLOCK_BYTES = 16 * 2**20
CHUNK_BYTES = 2**20


class Digests(TypedDict):
    """Size and sha256 of a file and of its blocks."""

    size_bytes: int
    sha256: str
    blocks: list[str]
    block_size_bytes: int


class FileEntry(TypedDict):
    """One file of dataset.json; `documents` counts those that end in it."""

    tokens: int
    documents: int
    size_bytes: int
    sha256: str
    blocks: list[str]
    block_size_bytes: int


class Separator(TypedDict):
    """The mark between documents: its text, its ids (none or one), and where it stands (`after` each document)."""

    text: str
    ids: list[int]
    policy: str


class Excluded(TypedDict):
    """What was left out because another dataset has it."""

    source: str
    documents: int
    tokens: int


class MixShare(TypedDict):
    """One source of a mixture and what it gave; `ended`: it had no more before the budget was reached."""

    source: str
    weight: float
    documents: int
    tokens: int
    share: float
    ended: bool


class DatasetJson(TypedDict, total=False):
    """dataset.json. The preparation writes every key; a folder made elsewhere may have fewer, or no dataset.json."""

    request: dict[str, object]
    """What was asked of the preparation, so that the same request on the same text is not done twice."""
    source: str
    source_sha256: str
    tokenizer: str
    vocab_size: int
    format: str
    dtype: str
    separator: Separator
    split: dict[str, object]
    skipped: dict[str, object]
    documents: int
    tokens: int
    excluded: Excluded
    mixture: list[MixShare]
    files: dict[str, FileEntry]


class Digest:
    """Fed with a file's bytes in order. The last block may be shorter; an empty file has none."""

    def __init__(self) -> None:
        self._whole, self._block = hashlib.sha256(), hashlib.sha256()
        self._blocks: list[str] = []
        self._size_bytes = 0

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        self._whole.update(data)
        view = memoryview(data)
        while view:
            room = BLOCK_BYTES - self._size_bytes % BLOCK_BYTES
            self._block.update(view[:room])
            self._size_bytes += len(view[:room])
            view = view[room:]
            if self._size_bytes % BLOCK_BYTES == 0:
                self._blocks.append(self._block.hexdigest())
                self._block = hashlib.sha256()

    def entry(self) -> Digests:
        """What dataset.json says about these bytes."""
        open_block = [self._block.hexdigest()] if self._size_bytes % BLOCK_BYTES else []
        return Digests(
            size_bytes=self._size_bytes,
            sha256=self._whole.hexdigest(),
            blocks=[*self._blocks, *open_block],
            block_size_bytes=BLOCK_BYTES,
        )


def digest_file(path: Path, report: Callable[[int], None] = lambda done_bytes: None) -> Digests:
    """Reads the file once, with `report(bytes done)` after each piece. Raises OSError."""
    digest, done_bytes = Digest(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
            report(done_bytes)
    return digest.entry()

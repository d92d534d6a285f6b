"""The token files behind a URI: which there are, how long each is, and what its bytes are promised to be.

Reads listings and headers through a Storage, a few kilobytes of each file. It must not decide what a run needs of them.

Example: `stored_dataset(store, "hf://gpjt/fineweb-gpt2-tokens").train_tokens` -> 10248871837
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.datasets.dataset_index import DATASET, Blocks, Promised, read_index
from orchestrator.core.datasets.token_layout import FIRST_BYTES, SUFFIXES, Layout, header_bytes, layout_of
from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.ports import Storage, StoredFile

MOST_SHARDS = 10_000
LONGEST_HEADER_BYTES = 4 << 20
"""Of one file's header: what is sent to a machine as a literal part."""


@dataclass(frozen=True)
class TokenFile:
    """One shard: where it is, how it is laid out, and the digests of its blocks where they are listed."""

    file: StoredFile
    layout: Layout
    blocks: Blocks | None = None


@dataclass(frozen=True)
class StoredDataset:
    """Shards in name order. No validation files: the slice is held out of the training stream."""

    train: tuple[TokenFile, ...]
    validation: tuple[TokenFile, ...]

    @property
    def train_tokens(self) -> int:
        return sum(each.layout.tokens for each in self.train)

    @property
    def validation_tokens(self) -> int:
        return sum(each.layout.tokens for each in self.validation)

    @property
    def size_bytes(self) -> int:
        """Of all files whole."""
        return sum(each.file.size_bytes for each in (*self.train, *self.validation))


def token_files(store: Storage, uri: str) -> list[StoredFile]:
    """What of the URI's files belongs to a dataset: shards by suffix, and dataset.json. Raises StorageError."""
    listed = store.manifest(uri)
    shards = [each for each in listed if each.name.endswith(SUFFIXES)]
    if not shards:
        found = ", ".join(each.name for each in listed[:5]) or "nothing"
        raise StorageError(
            f"data.source: {uri} has no .safetensors or .bin file (found: {found})",
            "make token files of text with: gptctl data prepare",
            missing=True,
        )
    if len(shards) > MOST_SHARDS:
        raise UserError(f"data.source: {uri} has {len(shards)} token files", f"use at most {MOST_SHARDS} larger ones")
    depth = min(each.name.count("/") for each in shards)
    return [
        each for each in listed if each.name.count("/") == depth and (each in shards or _base(each.name) == DATASET)
    ]


def stored_dataset(store: Storage, uri: str, files: Sequence[StoredFile]) -> StoredDataset:
    """Looks into the files that token_files found. A single one is all training; of several, train* and val* count."""
    index = next((each for each in files if _base(each.name) == DATASET), None)
    promised = read_index(store.read(index.uri, 0, 16 << 20), uri) if index else {}
    shards = [each for each in files if each is not index]
    train, validation = _named(shards, "train"), _named(shards, "val")
    if len(shards) == 1 and not train:
        train, validation = shards, []
    if not train:
        found = ", ".join(each.name for each in shards[:5])
        raise UserError(
            f"data.source: {uri} has no train*.safetensors or train*.bin (found: {found})",
            "name the training shards train*, the validation shards val*",
        )
    return StoredDataset(
        tuple(_look(store, each, promised.get(_base(each.name))) for each in train),
        tuple(_look(store, each, promised.get(_base(each.name))) for each in validation),
    )


def _look(store: Storage, file: StoredFile, promised: Promised | None) -> TokenFile:
    if promised is not None and promised.size_bytes != file.size_bytes:
        raise StorageError(
            f"{file.name} has {file.size_bytes} bytes, its {DATASET} says {promised.size_bytes}",
            "the files there do not belong together: prepare or copy them again",
        )
    head = store.read(file.uri, 0, FIRST_BYTES)
    wanted = header_bytes(file.name, head)
    if wanted > LONGEST_HEADER_BYTES:
        raise UserError(f"data.source: the header of {file.name} would have {wanted} bytes", "check the file")
    if wanted > len(head) < file.size_bytes:
        head += store.read(file.uri, len(head), wanted - len(head))
    sha256 = file.sha256 or (promised.sha256 if promised else None)
    known = StoredFile(file.name, file.size_bytes, sha256, file.uri, file.version)
    return TokenFile(known, layout_of(file.name, file.size_bytes, head), promised.blocks if promised else None)


def _named(files: Sequence[StoredFile], stem: str) -> list[StoredFile]:
    return sorted((each for each in files if _base(each.name).startswith(stem)), key=lambda each: each.name)


def _base(name: str) -> str:
    return posixpath.basename(name)

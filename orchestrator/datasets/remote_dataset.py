"""The token files behind a URI or a path: which there are, how long each is, and what its bytes are promised to be.

Reads listings, headers and a few samples of ids through a Storage, some kilobytes of each file, and proves each by the
rule that the machine will go by. It must not decide what a run needs of them.

Example: `open_dataset(store, recipe, "hf://gpjt/fineweb-gpt2-tokens").train_tokens` -> 10248871837
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from orchestrator.core.config.recipe import Recipe
from orchestrator.core.datasets.dataset_index import DATASET, Blocks, Promised, read_index
from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.ports import Storage, StoredFile
from orchestrator.core.safe_names import WILD
from trainer.layout.not_tokens import LayoutError
from trainer.layout.token_layout import Layout, layout_of
from trainer.layout.train_or_validation import SidesError, candidates, sort_files

MOST_SHARDS = 10_000
AT_ONCE = 8
"""Files that are asked for together: each takes about three requests."""


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
    def files(self) -> tuple[TokenFile, ...]:
        return self.train + self.validation

    @property
    def train_tokens(self) -> int:
        return sum(each.layout.tokens for each in self.train)

    @property
    def validation_tokens(self) -> int:
        return sum(each.layout.tokens for each in self.validation)

    @property
    def size_bytes(self) -> int:
        """Of all files whole."""
        return sum(each.file.size_bytes for each in self.files)


@dataclass(frozen=True)
class Listing:
    """The files of a dataset by side, as its source lists them, and its dataset.json."""

    train: tuple[StoredFile, ...]
    validation: tuple[StoredFile, ...]
    index: StoredFile | None = None


@dataclass(frozen=True)
class Proof:
    """What a file is proven against: ids below vocab_size; `dtype` where you vouch for headerless files."""

    vocab_size: int | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Proof:
        """The recipe's own."""
        return cls(recipe.model.vocab_size, recipe.data.dtype)


def open_dataset(store: Storage, recipe: Recipe, uri: str) -> StoredDataset:
    """The dataset at the URI, proven. Raises what `token_files`, `listing` and `stored_dataset` raise."""
    return stored_dataset(store, uri, listing(store, recipe, uri, token_files(store, uri)), Proof.of(recipe))


def token_files(store: Storage, uri: str) -> list[StoredFile]:
    """What of the URI's files belongs to a dataset: shards by suffix, and dataset.json. Raises StorageError."""
    listed = store.manifest(uri)
    chosen = set(candidates([each.name for each in listed])) or _only_file(listed, uri)
    if not chosen:
        found = ", ".join(each.name for each in listed[:5]) or "nothing"
        raise StorageError(
            f"data.source: {uri} has no .safetensors, .bin or .npy file (found: {found})",
            "make token files of text with: gptctl data prepare",
            missing=True,
        )
    if len(chosen) > MOST_SHARDS:
        raise UserError(f"data.source: {uri} has {len(chosen)} token files", f"use at most {MOST_SHARDS} larger ones")
    depth = min(name.count("/") for name in chosen)
    return [
        each
        for each in listed
        if each.name in chosen or (each.name.count("/") == depth and _base(each.name) == DATASET)
    ]


def _only_file(listed: Sequence[StoredFile], uri: str) -> set[str]:
    """A file that the URI names is one of tokens whatever its suffix; what it holds decides."""
    return {listed[0].name} if len(listed) == 1 and _names(uri, listed[0].name) else set()


def _names(uri: str, name: str) -> bool:
    """Whether the URI names this file, not the folder that it is in."""
    return uri.partition("?")[0].rstrip("/").endswith(_base(name))


def listing(
    store: Storage, recipe: Recipe, uri: str, files: Sequence[StoredFile], seen: Sequence[StoredFile] = ()
) -> Listing:
    """The files that token_files found, by side: by `data.validation.source`, else by their names. `seen`: those for
    validation that were listed before. Raises UserError, StorageError."""
    index = next((each for each in files if _base(each.name) == DATASET), None)
    shards = {each.name: each for each in files if each is not index}
    chosen = bool(WILD.search(uri)) or (len(shards) == 1 and _names(uri, next(iter(shards))))
    apart = recipe.data.validation.source if recipe.data.validation else None
    if apart is None:
        return _by_name(uri, shards, index, chosen=chosen)
    there = [each for each in token_files(store, apart) if _base(each.name) != DATASET] if not seen else []
    held_out = seen or [replace(each, name=f"validation/{each.name}") for each in there]
    known = {each.uri for each in held_out}
    rest = {name: each for name, each in shards.items() if each.uri not in known}
    found = _by_name(uri, rest, index, chosen=chosen)
    return replace(found, validation=tuple(sorted(held_out, key=lambda each: each.name)))


def _by_name(uri: str, shards: Mapping[str, StoredFile], index: StoredFile | None, *, chosen: bool) -> Listing:
    try:
        sides = sort_files(shards, all_train=chosen)
    except SidesError as error:
        raise UserError(
            f"data.source: {uri}: {error}",
            "name them by patterns: data.source = '.../NAME_*.bin', and data.validation.source for the others",
        ) from error
    return Listing(tuple(shards[name] for name in sides.train), tuple(shards[name] for name in sides.validation), index)


def stored_dataset(store: Storage, uri: str, listed: Listing, proof: Proof) -> StoredDataset:
    """Looks into the files, several at once, and proves each. Raises UserError for one that is not token ids."""
    index = listed.index
    promised = read_index(store.read(index.uri, 0, 16 << 20), uri) if index else {}
    beside = posixpath.dirname(index.uri) if index else None

    def look(file: StoredFile) -> TokenFile:
        mine = promised.get(_base(file.name)) if posixpath.dirname(file.uri) == beside else None
        return _look(store, file, mine, proof)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(look, (*listed.train, *listed.validation)))
    return StoredDataset(tuple(found[: len(listed.train)]), tuple(found[len(listed.train) :]))


def _look(store: Storage, file: StoredFile, promised: Promised | None, proof: Proof) -> TokenFile:
    if promised is not None and promised.size_bytes != file.size_bytes:
        raise StorageError(
            f"{file.name} has {file.size_bytes} bytes, its {DATASET} says {promised.size_bytes}",
            "the files there do not belong together: prepare or copy them again",
        )

    def read(start: int, size_bytes: int) -> bytes:
        return store.read(file.uri, start, min(size_bytes, max(0, file.size_bytes - start)))

    try:
        layout = layout_of(file.name, file.size_bytes, read, proof.vocab_size, proof.dtype)
    except LayoutError as error:
        raise UserError(f"data.source: {error.message}", error.hint) from error
    sha256 = file.sha256 or (promised.sha256 if promised else None)
    known = replace(file, sha256=sha256)
    return TokenFile(known, layout, promised.blocks if promised else None)


def _base(name: str) -> str:
    return posixpath.basename(name)

"""Writes token files: safetensors `tokens`, llm.c's .bin or nanoGPT's .bin, each whole or not at all.

A Shards collects one side of a split and cuts it after `shard_tokens` tokens. Until the last one is known, finished
shards wait in the work folder and the open one is stored there as bare ids, so that a killed preparation resumes
from its last `state`. It must not know about text.

Own headers: the safetensors library writes a tensor only from memory, where a shard may not fit. A test opens these
files with that library.

Example::

    shards = Shards(work, "train", Layout("safetensors", "uint16", 100_000_000))
    shards.append(ids, ends)             # ids of several documents, and where each of them ends
    shards.flush(); state = shards.state()
    files = shards.finish(Path("data"))  # {"train.safetensors": {"tokens": ..., "sha256": ..., ...}}
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
import numpy.typing as npt

from trainer.layout.token_layout import LLM_C, SAFETENSORS, llm_c_header, safetensors_header
from trainer.tokens.digests import CHUNK_BYTES, Digest, FileEntry
from trainer.tokens.token_file import SUFFIXES, DataError, StoredIds

TEMPORARY_PREFIX = ".tmp-"
Offsets = npt.NDArray[np.int64]


class ShardsState(TypedDict):
    """What a later Shards needs to resume: entries of finished shards, and what the open one holds."""

    finished: list[FileEntry]
    tokens: int
    documents: int


@dataclass(frozen=True)
class Layout:
    """How tokens lie on disk: kind of file, type of an id, and after how many tokens a new file begins."""

    kind: str
    dtype: str
    shard_tokens: int

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.kind]


def dtype_for(kind: str, vocab_size: int) -> str:
    """The narrowest type that holds every id. Raises DataError where this kind of file has none."""
    if vocab_size <= 2**16:
        return "uint16"
    if kind != SAFETENSORS:
        raise DataError(f"{kind} files hold 16-bit ids, and this vocabulary has {vocab_size}: use {SAFETENSORS}")
    return "uint32"


def header(kind: str, dtype: str, count: int) -> bytes:
    """The bytes before the ids of a file of `count` tokens."""
    if kind == SAFETENSORS:
        return safetensors_header(dtype, count)
    return llm_c_header(count) if kind == LLM_C else b""


def write_token_file(
    path: Path, layout: Layout, count: int, chunks: Iterable[bytes | memoryview], documents: int
) -> FileEntry:
    """Writes `count` tokens, given as little-endian bytes, and returns what dataset.json says about the file.

    A temporary name, fsync, rename: the name never holds half a file, not even after a power cut. Raises OSError, and
    DataError where the chunks hold another number of tokens.
    """
    temporary, digest, moved = path.with_name(TEMPORARY_PREFIX + path.name), Digest(), 0
    try:
        with temporary.open("wb") as file:
            for data in itertools.chain([header(layout.kind, layout.dtype, count)], chunks):
                moved += file.write(data)
                digest.update(data)
            file.flush()
            os.fsync(file.fileno())
        expected = len(header(layout.kind, layout.dtype, count)) + count * np.dtype(layout.dtype).itemsize
        if moved != expected:
            raise DataError(f"{path}: {moved} bytes were written, {expected} were announced")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return FileEntry(tokens=count, documents=documents, **digest.entry())


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a small file by temporary name, fsync and rename."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Shards:
    """One side of a split, written as it arrives. Holds one open file."""

    def __init__(self, work: Path, name: str, layout: Layout, state: ShardsState | None = None) -> None:
        """Resumes from `state`; without it the side is empty. Raises OSError where its files are gone."""
        self.work, self.name, self.layout = work, name, layout
        known: ShardsState = state or {"finished": [], "tokens": 0, "documents": 0}
        self.finished = list(known["finished"])
        self._tokens, self._documents = known["tokens"], known["documents"]
        self._file: BinaryIO = self._reopen() if state else self._open_path().open("wb")

    @property
    def tokens(self) -> int:
        """All tokens so far."""
        return self._tokens + sum(entry["tokens"] for entry in self.finished)

    @property
    def documents(self) -> int:
        """All documents that have ended so far."""
        return self._documents + sum(entry["documents"] for entry in self.finished)

    def append(self, ids: StoredIds, ends: Offsets) -> None:
        """Ids of this side's next documents; `ends` are the positions in `ids` after each document's last token."""
        done = 0
        while done < len(ids):
            stop = min(len(ids), done + self.layout.shard_tokens - self._tokens)
            self._file.write(np.ascontiguousarray(ids[done:stop]).data)
            self._tokens += stop - done
            self._documents += int(np.searchsorted(ends, stop, "right") - np.searchsorted(ends, done, "right"))
            done = stop
            if self._tokens == self.layout.shard_tokens:
                self._finish_shard()

    def flush(self) -> None:
        """Writes everything appended so far to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def state(self) -> ShardsState:
        """What a later Shards needs to resume."""
        return {"finished": self.finished, "tokens": self._tokens, "documents": self._documents}

    def tidy(self) -> None:
        """Removes the bare ids of finished shards. Call it once a state that lists them is on the disk."""
        for index in range(len(self.finished)):
            self._open_path(index).unlink(missing_ok=True)

    def finish(self, to: Path) -> dict[str, FileEntry]:
        """Moves all shards to folder `to` and returns their entries: `train.bin` for one, `train-00000.bin` for more.

        A second call after a kill in between gives the same files.
        """
        if self._tokens:
            self._finish_shard()
        self._file.close()
        several = len(self.finished) > 1
        files = {}
        for index, entry in enumerate(self.finished):
            name = f"{self.name}-{index:05d}" if several else self.name
            place, here = to / f"{name}{self.layout.suffix}", self._shard_path(index)
            if here.exists():
                here.replace(place)
            elif not place.exists() or place.stat().st_size != entry["size_bytes"]:
                raise OSError(f"{here} is gone")
            files[place.name] = entry
        return files

    def close(self) -> None:
        """Closes the files, for another Shards to resume."""
        self._file.close()

    def _finish_shard(self) -> None:
        self._file.close()
        index = len(self.finished)
        chunks = _chunks(self._open_path(index))
        self.finished.append(
            write_token_file(self._shard_path(index), self.layout, self._tokens, chunks, self._documents)
        )
        self._tokens = self._documents = 0
        self._file = self._open_path().open("wb")

    def _reopen(self) -> BinaryIO:
        """The open shard, cut back to the length in the state; the rest is appended again."""
        file = self._open_path().open("r+b")
        size = self._tokens * np.dtype(self.layout.dtype).itemsize
        if file.seek(0, os.SEEK_END) < size:
            file.close()
            raise OSError(f"{self._open_path()} is shorter than it was")
        file.truncate(size)
        file.seek(size)
        return file

    def _open_path(self, index: int | None = None) -> Path:
        return self.work / f"{self.name}-{len(self.finished) if index is None else index:05d}.ids"

    def _shard_path(self, index: int) -> Path:
        return self.work / f"{self.name}-{index:05d}{self.layout.suffix}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk

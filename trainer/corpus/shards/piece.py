"""The folder of one shard: the ids of its documents in their order, a record per document, and shard.json last.

A shard without shard.json is unfinished; one whose files differ from it is broken. It says for which request and which
text it was made, so that no other preparation takes it. It must not know how text becomes ids.

Example::

    writer = PieceWriter(work_folder.folder, work_folder.state)
    writer.take(encoded, batch.after)
    writer.finish(Path("data/books/shards/00003-of-00008"), order)
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from trainer.corpus.documents import Place
from trainer.corpus.encode import Encoded
from trainer.corpus.split import SplitState, place_from_json
from trainer.tokens.digests import CHUNK_BYTES, Digest, Digests, digest_file
from trainer.tokens.token_file import StoredIds
from trainer.tokens.token_writers import write_atomically

SHARDS = "shards"
"""The folder, within a dataset's, of its shards before they are merged."""
SHARD_JSON, IDS, RECORDS = "shard.json", "ids.bin", "documents.bin"
RECORD = np.dtype([("sha256", "V32"), ("tokens", "<u8"), ("first", "u1"), ("last", "u1"), ("held_out", "u1")])
"""Of one document, or of one piece of a large one: its hash, its number of ids, and where it belongs."""
NAME = re.compile(r"\d{5}-of-\d{5}")
RECORDS_AT_ONCE, TOKENS_AT_ONCE = 2**16, 2**22
"""What a reader has in memory."""


def shard_folders(to: Path) -> list[Path]:
    """Those of a dataset's folder, finished or not, in order."""
    return sorted(each for each in (to / SHARDS).glob("*") if NAME.fullmatch(each.name))


class ShardError(ValueError):
    """Shards that are missing, broken, or of another preparation. Names them, and what to do."""


@dataclass(frozen=True)
class Order:
    """Which shard of what: equal on every machine that is to make it."""

    shard: int
    of: int
    request: dict[str, object]
    """Request.to_json(): tokenizer, separator and all else that decides the bytes."""
    dtype: str
    text: str
    """The fingerprint of all files of the preparation."""
    also_held_out: str | None = None
    """EncodeSettings.also_held_out, which follows from all files too."""

    @property
    def name(self) -> str:
        """Of its folder; sorts by number."""
        return f"{self.shard:05d}-of-{self.of:05d}"

    def difference(self, other: Order) -> str:
        """What the other one was made with that this one was not, in words; empty for two of one preparation."""
        mine, theirs = asdict(replace(self, shard=0)), asdict(replace(other, shard=0))
        mine, theirs = {**mine.pop("request"), **mine}, {**theirs.pop("request"), **theirs}
        names = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        if "text" in names:
            return "another text"
        return ", ".join(f"{name} {theirs.get(name)!r} instead of {mine.get(name)!r}" for name in names)


@dataclass(frozen=True)
class Piece:
    """A finished shard, as shard.json says it."""

    order: Order
    invalid: int
    empty: int
    files: dict[str, Digests]

    @staticmethod
    def read(folder: Path) -> Piece:
        """Raises ShardError where there is none, or a foreign one."""
        try:
            found = json.loads((folder / SHARD_JSON).read_text())
            return Piece(Order(**found["order"]), int(found["invalid"]), int(found["empty"]), found["files"])
        except OSError as error:
            raise ShardError("missing") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError("broken: its shard.json is torn or of another program") from error

    def check(self, folder: Path) -> None:
        """Compares the files with their digests. Raises ShardError."""
        for name, entry in self.files.items():
            try:
                same = digest_file(folder / name)["sha256"] == entry["sha256"]
            except OSError:
                same = False
            if not same:
                raise ShardError(f"broken: {name} differs from {SHARD_JSON}")


@dataclass(frozen=True)
class Written:
    """How far a shard is: the place in its text, and what is in its files."""

    place: Place = field(default_factory=Place)
    ids_bytes: int = 0
    records: int = 0
    documents: int = 0
    tokens: int = 0
    invalid: int = 0
    empty: int = 0


class PieceWriter:
    """Writes a shard as its documents arrive. Holds two open files; work_folder.py stores its state."""

    finished_shards = 0

    def __init__(self, work: Path, state: SplitState | None) -> None:
        """Resumes from a state; raises OSError where its files are gone."""
        known = state["done"] if state else {}
        self.written = Written(**{**known, "place": place_from_json(known["place"])}) if state else Written()
        self.work = work
        self.ids = _Appended(work / IDS, self.written.ids_bytes)
        self.records = _Appended(work / RECORDS, self.written.records * RECORD.itemsize)

    def take(self, encoded: Encoded, after: Place) -> None:
        """Adds a batch's documents; then the place is `after`."""
        rows = np.zeros(len(encoded.lengths), RECORD)
        rows["sha256"] = np.frombuffer(b"".join(encoded.sha256s), "V32")
        rows["tokens"], rows["held_out"] = encoded.lengths, encoded.held_out
        rows["first"], rows["last"] = encoded.first, encoded.last
        self.ids.append(np.ascontiguousarray(encoded.ids).tobytes())
        self.records.append(rows.tobytes())
        before = self.written
        self.written = Written(
            after,
            before.ids_bytes + encoded.ids.nbytes,
            before.records + len(rows),
            before.documents + int(encoded.last.sum()),
            before.tokens + len(encoded.ids),
            before.invalid + encoded.invalid,
            before.empty + encoded.empty,
        )

    def flush(self) -> None:
        """Writes everything taken so far to the disk."""
        for each in (self.ids, self.records):
            each.file.flush()
            os.fsync(each.file.fileno())

    def tidy(self) -> None:
        """Keeps everything: a stored state needs it all."""

    def state(self) -> SplitState:
        """What a later process needs to resume; JSON."""
        return {"done": asdict(self.written), "sides": {}}

    def close(self) -> None:
        """Closes the files, for a later process to resume."""
        self.ids.file.close()
        self.records.file.close()

    def finish(self, to: Path, order: Order) -> None:
        """Moves the files to the shard's folder and writes shard.json, which makes them count."""
        self.flush()
        self.close()
        (to / SHARD_JSON).unlink(missing_ok=True)
        files = {IDS: self.ids.digest.entry(), RECORDS: self.records.digest.entry()}
        for name in files:
            (self.work / name).replace(to / name)
        content = asdict(Piece(order, self.written.invalid, self.written.empty, files))
        write_atomically(to / SHARD_JSON, (json.dumps(content, indent=1) + "\n").encode())


class _Appended:
    """A file that grows, and the digest of what was written to it: not of what another process made of it."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.digest = Digest()
        self.file: BinaryIO = path.open("r+b" if size_bytes else "wb")
        left = size_bytes
        while left:
            chunk = self.file.read(min(CHUNK_BYTES, left))
            if not chunk:
                self.file.close()
                raise OSError(f"{path} is shorter than it was")
            self.digest.update(chunk)
            left -= len(chunk)
        self.file.truncate(size_bytes)

    def append(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)


def read_piece(folder: Path, piece: Piece, first: int = 0) -> Iterator[tuple[Encoded, int | None]]:
    """The documents of a shard from record `first` on, some at a time, each time with the number of the next record.
    With the last ones comes None, and what was skipped. Raises OSError."""
    count = piece.files[RECORDS]["size_bytes"] // RECORD.itemsize
    width = np.dtype(piece.order.dtype).itemsize
    records = np.memmap(folder / RECORDS, RECORD, "r") if count else np.empty(0, RECORD)
    with (folder / IDS).open("rb") as ids:
        ids.seek(int(records["tokens"][:first].sum()) * width)
        at, whole = first, None
        while whole is None:
            rows = records[at : at + RECORDS_AT_ONCE]
            fits = int(np.searchsorted(np.cumsum(rows["tokens"]), TOKENS_AT_ONCE, "right"))
            rows = rows[: max(1, fits)]
            at += len(rows)
            whole = piece if at >= count else None
            data = np.frombuffer(ids.read(int(rows["tokens"].sum()) * width), piece.order.dtype)
            yield _encoded(rows, data, whole), at if whole is None else None


def _encoded(rows: npt.NDArray[np.void], ids: StoredIds, whole: Piece | None) -> Encoded:
    return Encoded(
        ids,
        rows["tokens"].astype(np.int64),
        np.zeros(len(rows), np.int64),
        rows["first"].astype(np.bool_),
        rows["last"].astype(np.bool_),
        rows["held_out"].astype(np.bool_),
        tuple(bytes(each) for each in rows["sha256"]),
        whole.invalid if whole else 0,
        whole.empty if whole else 0,
    )

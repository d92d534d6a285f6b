"""Raw documents to token ids: what one worker does with one batch, and which documents it skips.

Parses, hashes, decides the side of the split, tokenises. Pure except for the tokenizer, which a worker opens once. It
must not read or write files.

Example::

    settings = EncodeSettings("gpt2", 50256, "uint16", "text", 20)
    encoded = encode_batch(batch, settings)
    encoded.ids, encoded.lengths, encoded.held_out, encoded.invalid
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken

from trainer.corpus.csv_rows import BYTE_ORDER_MARK
from trainer.corpus.documents import JSON_LINES, Batch, Piece
from trainer.corpus.parquet import CorpusError
from trainer.tokens.token_file import StoredIds
from trainer.tokens.tokenizer import encode, open_tokenizer

INVALID, EMPTY = "invalid_utf8", "empty"
SKIP, REPLACE = "skip", "replace"
POLICIES = {
    SKIP: "a document that is not UTF-8 is left out and counted",
    REPLACE: "a document that is not UTF-8 is counted, and U+FFFD stands for what is wrong in it",
}
"""What happens to invalid UTF-8, as dataset.json says it."""


@dataclass(frozen=True)
class EncodeSettings:
    """How to turn a document into ids."""

    tokenizer: str
    mark: int | None
    """The id that follows each document."""
    dtype: str
    column: str
    held_out_every: int
    """One document in this many, by its hash, is for validation; 0: none."""
    invalid: str = SKIP
    also_held_out: str | None = None
    """The sha256 of a document that is for validation whatever its hash: of few documents, none may be by chance."""


@dataclass(frozen=True)
class Document:
    """One document or a piece of a large one. A skipped one has a reason and no text; `broken`: not all UTF-8."""

    text: str
    sha256: str
    size_bytes: int
    first: bool = True
    last: bool = True
    skipped: str = ""
    broken: bool = False


@dataclass(frozen=True)
class Encoded:
    """The ids of a batch's documents in a row, and per document (or piece): an array each."""

    ids: StoredIds
    lengths: npt.NDArray[np.int64]
    sizes_bytes: npt.NDArray[np.int64]
    """Of the whole document, at its first piece; 0 at the others."""
    first: npt.NDArray[np.bool_]
    last: npt.NDArray[np.bool_]
    held_out: npt.NDArray[np.bool_]
    sha256s: tuple[bytes, ...]
    invalid: int
    empty: int


def encode_batch(batch: Batch, settings: EncodeSettings) -> Encoded:
    """Encodes a batch. Raises CorpusError for a line that is not JSON or has no text."""
    encoding = _encoding(settings.tokenizer)
    mark = [] if settings.mark is None else [np.array([settings.mark], settings.dtype)]
    encoded: list[Document] = []
    parts: list[StoredIds] = []
    lengths: list[int] = []
    invalid = empty = 0
    for document in documents(batch, settings.column, settings.invalid):
        invalid += document.first and document.broken
        empty += document.skipped == EMPTY
        if document.skipped:
            continue
        ids = encode(encoding, document.text)
        parts += [ids.astype(settings.dtype), *(mark if document.last else [])]
        lengths.append(len(ids) + (len(mark) if document.last else 0))
        encoded.append(document)
    return Encoded(
        np.concatenate(parts) if parts else np.empty(0, settings.dtype),
        np.array(lengths, np.int64),
        np.array([document.size_bytes if document.first else 0 for document in encoded], np.int64),
        np.array([document.first for document in encoded], np.bool_),
        np.array([document.last for document in encoded], np.bool_),
        np.array(
            [
                document.sha256 == settings.also_held_out or is_held_out(document.sha256, settings.held_out_every)
                for document in encoded
            ],
            np.bool_,
        ),
        tuple(bytes.fromhex(document.sha256) for document in encoded),
        invalid,
        empty,
    )


def is_held_out(sha256: str, every: int) -> bool:
    """Whether a document is for validation: a function of its text alone."""
    return every > 0 and int(sha256, 16) % every == 0


def documents(batch: Batch, column: str, invalid: str) -> Iterator[Document]:
    """The batch's documents, the skipped ones too."""
    offset = batch.start
    for record in batch.records:
        if isinstance(record, Piece):
            yield _piece(record, invalid)
            continue
        raw = record
        if batch.kind == JSON_LINES:
            raw = _text_of_line(batch.path, offset, record, column)
            offset += len(record)
        yield _document(raw, invalid)


def _document(raw: bytes, invalid: str) -> Document:
    if not raw.strip():
        return Document("", "", 0, skipped=EMPTY)
    try:
        text, broken = raw.decode(), False
    except UnicodeDecodeError:
        text, broken = raw.decode(errors="replace"), True
    if broken and invalid == SKIP:
        return Document("", "", 0, skipped=INVALID, broken=True)
    if not text.strip():  # Unicode has more white space than ASCII
        return Document("", "", 0, skipped=EMPTY)
    return Document(text, hashlib.sha256(raw).hexdigest(), len(raw), broken=broken)


def _piece(piece: Piece, invalid: str) -> Document:
    extent, broken = piece.extent, not piece.extent.valid
    if broken and invalid == SKIP:
        return Document("", "", 0, first=piece.first, skipped=INVALID, broken=True)
    text = piece.raw.decode(errors="replace")
    return Document(text, extent.sha256, extent.stop - extent.start, piece.first, piece.last, broken=broken)


def _text_of_line(path: Path, offset: int, line: bytes, column: str) -> bytes:
    line = line.removeprefix(BYTE_ORDER_MARK)  # where files were joined, any line may begin with one
    if not line.strip():
        return b""
    try:
        # Bytes that are not UTF-8 become lone surrogates here and invalid UTF-8 below, so that they are counted.
        value = json.loads(line.decode(errors="surrogateescape"))
    except ValueError as error:
        raise CorpusError(f"{path}: the line at byte {offset} is not JSON: {error}") from error
    if not isinstance(value, dict) or column not in value:
        has = ", ".join(value) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise CorpusError(f"{path}: the line at byte {offset} has no {column!r}; it has: {has}. Choose with --column")
    text = value[column]
    if text is not None and not isinstance(text, str):
        raise CorpusError(f"{path}: the line at byte {offset} has {column!r} as {type(text).__name__}, not as text")
    return (text or "").encode(errors="surrogatepass")


@functools.cache
def _encoding(name: str) -> tiktoken.Encoding:
    return open_tokenizer(name)

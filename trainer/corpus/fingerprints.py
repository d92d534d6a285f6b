"""Documents in token files as fingerprints, so that the same document is found in another dataset.

Documents end at the separator's id. A fingerprint is 8 bytes of BLAKE2 over a document's first 1,024 ids as 32-bit
numbers: two datasets of one tokenizer agree on it whatever the kind of file, the width of an id, and where a slice
ends. It must not know text.

Example::

    found = fingerprints(TokenStream.open(files), separator=50256)
    found.prints, found.lengths              # arrays with an entry per document
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.tokens.token_stream import TokenStream

COMPARED_TOKENS = 1024
"""Of each document; all of a shorter one."""
CHUNK_TOKENS = 2**20
Prints = npt.NDArray[np.uint64]


class Documents(NamedTuple):
    """One fingerprint and one length in tokens, without the separator, per document in order; none for empty ones."""

    prints: Prints
    lengths: npt.NDArray[np.int64]


def fingerprint(ids: npt.NDArray[np.integer[Any]]) -> int:
    """Of one document's ids, or at least of its first COMPARED_TOKENS, without the separator."""
    start = np.ascontiguousarray(ids[:COMPARED_TOKENS], "<u4")
    return int.from_bytes(hashlib.blake2b(start.data, digest_size=8).digest(), "little")


def fingerprints(
    stream: TokenStream,
    separator: int,
    part: tuple[int, int] | None = None,
    report: Callable[[int], None] = lambda done_tokens: None,
) -> Documents:
    """Of every document in the stream, or in `part` of it (first token, length), in constant memory but for 16 bytes
    each. A part that begins within a document leaves the rest of that one out. Raises DataError."""
    start, stop = (0, len(stream)) if part is None else (part[0], part[0] + part[1])
    prints: list[int] = []
    lengths: list[int] = []
    begun, begun_length = np.empty(0, np.int64), 0
    torn = start > 0 and int(stream.read(start - 1, 1)[0]) != separator
    for at in range(start, stop, CHUNK_TOKENS):
        ids = stream.read(at, min(CHUNK_TOKENS, stop - at))
        first = 0
        for end in np.flatnonzero(ids == separator).tolist():
            length = begun_length + end - first
            if length and not torn:
                mine = ids[first : min(end, first + COMPARED_TOKENS)]
                prints.append(fingerprint(np.concatenate([begun, mine]) if begun_length else mine))
                lengths.append(length)
            torn, begun, begun_length, first = False, begun[:0], 0, end + 1
        rest = ids[first:]
        begun = np.concatenate([begun, rest[: max(0, COMPARED_TOKENS - len(begun))]])
        begun_length += len(rest)
        report(at + len(ids) - start)
    if begun_length and not torn:
        prints.append(fingerprint(begun))
        lengths.append(begun_length)
    return Documents(np.array(prints, np.uint64), np.array(lengths, np.int64))

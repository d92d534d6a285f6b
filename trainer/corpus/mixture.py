"""Several sources as one stream of documents, by weight: always the next one of the source that is furthest behind.

The order follows from texts, tokenizer and weights alone, and a killed mixture resumes at the very document. A source
that ends early leaves the rest to the others. It must not read files: each source is an iterator of encoded batches.

Example::

    for encoded, taken in mixed(sources, weights=[0.7, 0.3], budget=1_000_000, taken=[Taken(), Taken()]): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from trainer.corpus.documents import Batch, Place
from trainer.corpus.encode import Encoded
from trainer.corpus.exclusion import Exclusion
from trainer.tokens.token_file import StoredIds

CHUNK_TOKENS = 2**18
"""Of the stream at once; between two chunks the state may be stored."""

Results = Iterator[tuple[Batch, Encoded]]


@dataclass(frozen=True)
class Taken:
    """How far one source is: `skip` documents or pieces of the batch at `place`, and what that made."""

    place: Place = field(default_factory=Place)
    skip: int = 0
    tokens: int = 0
    documents: int = 0
    ended: bool = False
    left_out_documents: int = 0
    left_out_tokens: int = 0
    dropping: bool = False
    """The batch at `place` begins within a document that is left out."""
    done_bytes: int = 0


class _Piece(NamedTuple):
    """One document, or one piece of a large one."""

    ids: StoredIds
    size_bytes: int
    first: bool
    last: bool
    held_out: bool
    sha256: bytes


class _Source:
    """One source's next document. Knows how far it is."""

    def __init__(self, results: Results, taken: Taken, exclusion: Exclusion | None) -> None:
        self.results, self.taken, self.exclusion = results, taken, exclusion
        self.invalid = self.empty = 0
        if not taken.ended:
            self._load(taken.skip)

    def document(self) -> list[_Piece]:
        """All pieces of the next one."""
        pieces: list[_Piece] = []
        while not self.taken.ended:
            pieces.append(self._piece())
            self._advance()
            if pieces[-1].last:
                break
        tokens = self.taken.tokens + sum(len(piece.ids) for piece in pieces)
        self.taken = replace(self.taken, tokens=tokens, documents=self.taken.documents + 1)
        return pieces

    def _piece(self) -> _Piece:
        at, encoded = self.at, self.encoded
        return _Piece(
            encoded.ids[self.starts[at] : self.starts[at + 1]],
            int(encoded.sizes_bytes[at]),
            bool(encoded.first[at]),
            bool(encoded.last[at]),
            bool(encoded.held_out[at]),
            encoded.sha256s[at],
        )

    def _advance(self) -> None:
        self.at += 1
        if self.at < len(self.encoded.lengths):
            self._note(self.at)
        else:
            self._finish_batch()
            self._load(0)

    def _finish_batch(self) -> None:
        """Its counts are added when all of it is taken: after a kill, a batch is read again from its beginning."""
        self.invalid, self.empty = self.invalid + self.raw.invalid, self.empty + self.raw.empty
        self._note(len(self.encoded.lengths))
        dropping = self.exclusion is not None and self.left_out.dropping
        done_bytes = self.batch.done_bytes
        self.taken = replace(self.taken, place=self.batch.after, skip=0, dropping=dropping, done_bytes=done_bytes)

    def _note(self, at: int) -> None:
        """So many documents or pieces of the batch are taken."""
        if self.exclusion is not None:
            skip = self.taken.skip
            more = [int(each[at]) - int(each[skip] if skip else 0) for each in self.left_out[:2]]
            documents, tokens = self.taken.left_out_documents + more[0], self.taken.left_out_tokens + more[1]
            self.taken = replace(self.taken, left_out_documents=documents, left_out_tokens=tokens)
        self.taken = replace(self.taken, skip=at)

    def _load(self, skip: int) -> None:
        for batch, raw in self.results:
            self.batch, self.raw = batch, raw
            self.encoded = self.raw
            if self.exclusion is not None:
                self.encoded, self.left_out = self.exclusion.filter(self.raw, dropping=self.taken.dropping)
            self.starts = [0, *np.cumsum(self.encoded.lengths).tolist()]
            self.at = skip
            if skip < len(self.encoded.lengths):
                return
            self._finish_batch()
            skip = 0
        self.taken = replace(self.taken, ended=True)


def mixed(
    results: Sequence[Results],
    weights: Sequence[float],
    budget: int | None,
    taken: Sequence[Taken],
    exclusion: Exclusion | None = None,
) -> Iterator[tuple[Encoded, tuple[Taken, ...]]]:
    """Chunks of the stream, each with how far the sources are after it; ends with the document that reaches the budget,
    or where every source has ended."""
    sources = [_Source(each, state, exclusion) for each, state in zip(results, taken, strict=True)]
    while True:
        pieces: list[_Piece] = []
        size = 0
        while size < CHUNK_TOKENS:
            total = sum(source.taken.tokens for source in sources)
            behind = [
                (source.taken.tokens / weight, at)
                for at, (source, weight) in enumerate(zip(sources, weights, strict=True))
                if not source.taken.ended
            ]
            if not behind or (budget is not None and total >= budget):
                break
            document = sources[min(behind)[1]].document()
            pieces += document
            size += sum(len(piece.ids) for piece in document)
        invalid, empty = sum(source.invalid for source in sources), sum(source.empty for source in sources)
        if not pieces and not invalid and not empty:
            return
        for source in sources:
            source.invalid = source.empty = 0
        yield _encoded(pieces, invalid, empty), tuple(source.taken for source in sources)
        if not pieces:
            return


def _encoded(pieces: Sequence[_Piece], invalid: int, empty: int) -> Encoded:
    return Encoded(
        np.concatenate([piece.ids for piece in pieces]) if pieces else np.empty(0, np.uint16),
        np.array([len(piece.ids) for piece in pieces], np.int64),
        np.array([piece.size_bytes for piece in pieces], np.int64),
        np.array([piece.first for piece in pieces], np.bool_),
        np.array([piece.last for piece in pieces], np.bool_),
        np.array([piece.held_out for piece in pieces], np.bool_),
        tuple(piece.sha256 for piece in pieces),
        invalid,
        empty,
    )

"""Leaves out documents that are in another dataset, such as the one that a model is tested on.

Example::

    exclusion = Exclusion.of([Path("test.bin")], separator=50256, has_mark=True)
    kept, left_out = exclusion.filter(encoded, dropping=False)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.corpus.encode import Encoded
from trainer.corpus.fingerprints import fingerprint, fingerprints
from trainer.tokens.token_stream import TokenStream


class LeftOut(NamedTuple):
    """What was left out of a batch before each document or piece that was kept, and of all of it at last."""

    documents: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    dropping: bool
    """The last document goes on in the next batch, and is left out too."""


@dataclass(frozen=True)
class Exclusion:
    """Fingerprints of the documents to leave out."""

    prints: frozenset[int]
    has_mark: bool
    """Whether a separator follows each document's ids."""

    @staticmethod
    def of(files: Sequence[Path], separator: int, *, has_mark: bool) -> Exclusion:
        """Of all documents in these token files. Raises DataError."""
        found = fingerprints(TokenStream.open(files), separator)
        return Exclusion(frozenset(found.prints.tolist()), has_mark)

    @property
    def sha256(self) -> str:
        """Of the set: two with the same documents are equal."""
        return hashlib.sha256(np.array(sorted(self.prints), "<u8").tobytes()).hexdigest()

    def filter(self, encoded: Encoded, *, dropping: bool) -> tuple[Encoded, LeftOut]:
        """The batch without those documents, and what was left out of it. `dropping`: as the batch before says."""
        keep = np.ones(len(encoded.lengths), np.bool_)
        begun = np.zeros(len(encoded.lengths), np.int64)
        for at, stop in enumerate(np.cumsum(encoded.lengths).tolist()):
            if encoded.first[at]:
                start = stop - int(encoded.lengths[at])
                end = stop - (self.has_mark and bool(encoded.last[at]))
                dropping = fingerprint(encoded.ids[start:end]) in self.prints
                begun[at] = dropping
            keep[at] = not dropping
            dropping = dropping and not encoded.last[at]
        kept = replace(
            encoded,
            ids=encoded.ids[np.repeat(keep, encoded.lengths)],
            lengths=encoded.lengths[keep],
            sizes_bytes=encoded.sizes_bytes[keep],
            first=encoded.first[keep],
            last=encoded.last[keep],
            held_out=encoded.held_out[keep],
            sha256s=tuple(each for each, mine in zip(encoded.sha256s, keep.tolist(), strict=True) if mine),
        )
        places = [*np.flatnonzero(keep).tolist(), len(keep)]
        documents, tokens = (
            np.concatenate([[0], np.cumsum(each)])[places] for each in (begun, np.where(keep, 0, encoded.lengths))
        )
        return kept, LeftOut(documents, tokens, dropping)

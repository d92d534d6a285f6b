"""The two sides of a dataset while they fill: limits, the split by hash, counts, and the state to resume from.

It must not read text: it takes the encoded batches in order.

Example::

    split = Split(work, layout, Limits(documents=21_000), state=None)
    split.take(encoded, batch.after)
    split.flush(); split.state()                  # goes into a file, and back into Split(...) after a kill
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from trainer.corpus.documents import Extent, Place
from trainer.corpus.encode import Encoded
from trainer.corpus.mixture import Taken
from trainer.tokens.digests import FileEntry
from trainer.tokens.token_writers import Layout, Shards, ShardsState

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Limits:
    """Where to stop: after this many documents, or before this many bytes of text."""

    documents: int | None = None
    size_bytes: int | None = None

    def allow(self, documents: int, size_bytes: int, more_bytes: int) -> bool:
        """Whether one more document of `more_bytes` fits after these."""
        fits = self.size_bytes is None or size_bytes + more_bytes <= self.size_bytes
        return fits and (self.documents is None or documents < self.documents)


@dataclass(frozen=True)
class Done:
    """What is done so far. `full`: a limit was reached."""

    place: Place = field(default_factory=Place)
    documents: int = 0
    size_bytes: int = 0
    source_sha256: str = ""
    invalid: int = 0
    empty: int = 0
    full: bool = False
    mix: tuple[Taken, ...] = ()
    """How far each source of a mixture is."""

    def skipped_words(self) -> str:
        """Why the dataset may be empty."""
        if self.full:
            return "the limit is too small for its first document"
        broken = f"{self.invalid} not UTF-8 (--invalid replace keeps them)" if self.invalid else "none not UTF-8"
        return f"{self.empty} documents are empty, {broken}"


class SplitState(TypedDict):
    """What a later process needs to resume; JSON."""

    done: dict[str, Any]
    """The fields of Done."""
    sides: dict[str, ShardsState]


class Split:
    """Training and validation shards side by side. Holds their open files."""

    def __init__(self, work: Path, layout: Layout, limits: Limits, state: SplitState | None) -> None:
        """Resumes from a state; without one both sides are empty. Raises OSError where files of the state are gone."""
        self.layout, self.limits = layout, limits
        self.done = _done(state["done"]) if state else Done()
        self.sides = {
            name: Shards(work, name, layout, state["sides"][name] if state else None) for name in (TRAIN, VALIDATION)
        }

    @property
    def tokens(self) -> int:
        return sum(side.tokens for side in self.sides.values())

    @property
    def finished_shards(self) -> int:
        return sum(len(side.finished) for side in self.sides.values())

    def take(self, encoded: Encoded, after: Place, mix: tuple[Taken, ...] = ()) -> None:
        """Adds a batch's documents, up to the limit, each to its side; then the place is `after`, a mixture's `mix`."""
        count = self._within_limits(encoded)
        held_out = encoded.held_out[:count]
        lengths = encoded.lengths[:count]
        ids = encoded.ids[: int(lengths.sum())]
        of_id = np.repeat(held_out, lengths)
        for side, mine in ((self.sides[TRAIN], False), (self.sides[VALIDATION], True)):
            selected = held_out == mine
            if selected.any():
                stops = np.cumsum(lengths[selected])
                side.append(ids[of_id == mine], stops[encoded.last[:count][selected]])
        self.done = replace(
            self.done,
            place=after,
            invalid=self.done.invalid + encoded.invalid,
            empty=self.done.empty + encoded.empty,
            mix=mix,
        )

    def _within_limits(self, encoded: Encoded) -> int:
        """How many of the documents or pieces fit; counts and chains them."""
        documents, size_bytes, known = self.done.documents, self.done.size_bytes, self.done.source_sha256
        full = False
        count = 0
        for first, more, sha256 in zip(
            _as_list(encoded.first), _as_list(encoded.sizes_bytes), encoded.sha256s, strict=True
        ):
            if first:
                if not self.limits.allow(documents, size_bytes, more):
                    full = True
                    break
                documents, size_bytes, known = documents + 1, size_bytes + more, chained(known, sha256)
            count += 1
        self.done = replace(
            self.done, documents=documents, size_bytes=size_bytes, source_sha256=known, full=self.done.full or full
        )
        return count

    def flush(self) -> None:
        """Writes everything taken so far to the disk."""
        for side in self.sides.values():
            side.flush()

    def tidy(self) -> None:
        """Removes what the stored state no longer needs."""
        for side in self.sides.values():
            side.tidy()

    def state(self) -> SplitState:
        """What a later process needs to resume; JSON."""
        return {"done": asdict(self.done), "sides": {name: side.state() for name, side in self.sides.items()}}

    def finish(self, to: Path) -> dict[str, FileEntry]:
        """Moves all shards to folder `to`; returns their entries by file name."""
        files: dict[str, FileEntry] = {}
        for side in self.sides.values():
            files.update(side.finish(to))
        return files

    def close(self) -> None:
        """Closes the files, for a later process to resume."""
        for side in self.sides.values():
            side.close()


def chained(known: str, sha256: bytes) -> str:
    """The digest of a sequence of documents, one more at a time, so that another process can continue it."""
    return hashlib.sha256(bytes.fromhex(known) + sha256).hexdigest()


def _as_list(array: npt.NDArray[Any]) -> list[Any]:
    values: list[Any] = array.tolist()  # Python's own numbers are faster one by one
    return values


def _done(values: Mapping[str, Any]) -> Done:
    mix = tuple(Taken(**{**each, "place": place_from_json(each["place"])}) for each in values["mix"])
    return Done(**{**values, "place": place_from_json(values["place"]), "mix": mix})


def place_from_json(values: Mapping[str, Any]) -> Place:
    """A Place from its fields, as JSON has them."""
    return Place(values["file"], values["offset"], Extent(**values["extent"]) if values["extent"] else None)

"""Token files on this computer as an identity: the digest over their names and contents, and what made them.

Example: `digest([("train.bin", Path("data/train.bin"))], known={})` -> "9f86d081884c7d65"
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.typed_json import decode, parse

PREPARED = "dataset.json"
"""Beside the shards where `data prepare` made them."""


@dataclass(frozen=True)
class Excluded:
    """What the preparation left out, because it is in another dataset."""

    source: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Split:
    """How many documents are for validation."""

    held_out: int = 0


@dataclass(frozen=True)
class MixShare:
    """What one source of a mixture gave; `ended`: it had no more."""

    source: str
    share: float
    documents: int
    tokens: int
    ended: bool = False

    def words(self, shown: Callable[[str], str]) -> str:
        """For people; `shown` makes of a source what others may read."""
        all_of_it = ", all that it has" if self.ended else ""
        return (
            f"{self.share:.1%} {shown(self.source)} ({self.documents:,} documents, {self.tokens:,} tokens{all_of_it})"
        )


@dataclass(frozen=True)
class PreparedExamples:
    """Of a task's dataset: the tokens of a row, and what was dropped."""

    row: int = 0
    too_long: int = 0
    empty: int = 0
    empty_named: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        """Examples that are not in the dataset."""
        return self.too_long + self.empty

    def dropped_words(self) -> str:
        """For people, with the first empty ones by name."""
        named = f" ({'; '.join(self.empty_named)}{', ...' * (self.empty > len(self.empty_named))})" * bool(self.empty)
        return f"dropped: {self.too_long:,} examples longer than {self.row:,} tokens, {self.empty:,} empty ones{named}"


@dataclass(frozen=True)
class Prepared:
    """What dataset.json says of how the dataset was made; empty unless `gptctl data prepare` made it."""

    documents: int | None = None
    excluded: Excluded | None = None
    mixture: tuple[MixShare, ...] = ()
    split: Split = Split()
    examples: PreparedExamples | None = None

    def mixture_words(self, shown: Callable[[str], str]) -> str | None:
        """What each source of a mixture gave; None without one. `shown` makes of a source what others may read."""
        return "; ".join(each.words(shown) for each in self.mixture) or None

    def excluded_words(self, shown: Callable[[str], str]) -> str | None:
        """What was left out; None where nothing was looked for."""
        if self.excluded is None:
            return None
        source, count, tokens = shown(self.excluded.source), self.excluded.documents, self.excluded.tokens
        return f"made without the documents of {source}: {count:,} documents, {tokens:,} tokens left out"


def prepared(folder: Path) -> Prepared:
    """Of a folder of token files."""
    try:
        return decode(Prepared, parse((folder / PREPARED).read_text(encoding="utf-8")), lenient=True)
    except (OSError, ValueError):
        return Prepared()


def digest(files: Sequence[tuple[str, Path]], known: dict[str, str]) -> str:
    """The dataset's identity: sha256 over names and contents, 16 hex digits. `known` caches contents by path, size and
    modification time, so that an unchanged dataset is never read twice."""
    whole = hashlib.sha256()
    for name, path in files:
        status = path.stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
        if key not in known:
            with path.open("rb") as file:
                known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{name}\0{known[key]}\n".encode())
    return whole.hexdigest()[:16]

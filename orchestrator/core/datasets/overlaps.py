"""Which datasets were compared document by document, and what came out: `overlaps.json` in GPTCTL_HOME.

Example: `about(home, "hf://me/train")` -> "checked against hf://me/test: 150 of its 1,000 documents (15.0%) are in it"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.typed_json import decode, encode, parse

FILE = "overlaps.json"


@dataclass(frozen=True)
class CheckedOverlap:
    """Two sources as they were typed, `against` the one that was looked for in `source`. Counts are of `against`."""

    source: str
    against: str
    checked_at: float
    """UTC epoch seconds."""
    documents: int
    shared_documents: int
    tokens: int
    shared_tokens: int

    def words(self, shown: Callable[[str], str]) -> str:
        """For people; `shown` makes of a source what others may read."""
        part = self.shared_documents / max(1, self.documents)
        found = f"{self.shared_documents:,} of its {self.documents:,} documents ({part:.1%}) are"
        words = found if self.shared_documents else f"none of its {self.documents:,} documents is"
        return f"checked against {shown(self.against)}: {words} in it"


@dataclass(frozen=True)
class _File:
    checked: tuple[CheckedOverlap, ...] = ()


def known(home: Path) -> Sequence[CheckedOverlap]:
    """All, the newest last; none where the file cannot be read."""
    try:
        return decode(_File, parse((home / FILE).read_text(encoding="utf-8")), lenient=True).checked
    except (OSError, ValueError):
        return ()


def added(home: Path, new: CheckedOverlap) -> bytes:
    """The file's content with this one; it replaces an older check of the same two."""
    others = [each for each in known(home) if (each.source, each.against) != (new.source, new.against)]
    return json.dumps(encode(_File((*others, new))), indent=1).encode()


def about(home: Path, source: str, shown: Callable[[str], str] = str) -> str | None:
    """What is known of a source's overlap, in words; None where it was not checked."""
    found = [each.words(shown) for each in known(home) if each.source == source]
    return "; ".join(found) or None

"""Names the word somebody probably meant: one place, so that every message about a typo reads alike.

It must not decide anything. Example: `did_you_mean("lerning_rate", ["learning_rate"])` is
`" (did you mean learning_rate?)"`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when none is like it."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return matches[0] if matches else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing when no known word is near."""
    match = nearest(word, known)
    return f" (did you mean {match}?)" if match else ""


def one_of(known: Iterable[str], most: int = 12) -> str:
    """The known words as `a, b, c`, cut after `most`; `none` when there is none."""
    words = sorted(known)
    return (", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")) or "none"

"""Names the word you probably meant: one place, so that every message about a typo reads alike.

It must not decide anything. Example: `did_you_mean("lerning_rate", ["learning_rate"])` is
`" (did you mean learning_rate?)"`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.55
"""Of difflib's ratio, 0 to 1: below it a word is another word."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None when none is like it. Of two alike, the one with the same letters."""
    matches = difflib.get_close_matches(word, list(known), n=5, cutoff=CUTOFF)
    letters = sorted(word)
    return min(matches, key=lambda match: (sorted(match) != letters, matches.index(match)), default=None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing when no known word is near."""
    match = nearest(word, known)
    return f" (did you mean {match}?)" if match else ""


def one_of(known: Iterable[str], most: int = 12) -> str:
    """The known words as `a, b, c`, cut after `most`; `none` when there is none."""
    words = sorted(known)
    return (", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")) or "none"

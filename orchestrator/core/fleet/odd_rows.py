"""Rows of a provider's lists that could not be read: each is shown once, so that it hides nothing and floods nobody.

Example: `odd.note("lambda", ["row 2: no id"]); odd.take()` -> ["lambda: row 2: no id"], and then []
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class OddRows:
    """The lines of one provider, in the order they came."""

    _new: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def note(self, provider: str, lines: Iterable[str]) -> None:
        """Keeps the lines for the next take()."""
        self._new += [f"{provider}: {line}" for line in lines]

    def take(self) -> list[str]:
        """The lines noted since the last call, without those that an earlier call returned."""
        fresh = [line for line in dict.fromkeys(self._new) if line not in self._taken]
        self._new.clear()
        self._taken.update(fresh)
        return fresh

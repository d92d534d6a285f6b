"""When a machine counts as gone. Pure: a fold over what the provider said in each round of looking.

Absence of evidence proves nothing: a list may lag, be empty, lack tags or end too early. A machine is gone when its
provider says so of this very id, when the provider does not know an id that it must know, or when it took the order to
end the machine and lists stop showing it; and only when all rounds agree for STANDS_S: an end may be taken back.

Example::

    proof = EndProof()
    proof = proof.after(Round(now, word="gone"), ordered=True)
    proof = proof.after(Round(now + 9, word="gone"), ordered=True)
    proof.complete        # True
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.core.ports import Life

ROUNDS = 2
"""Rounds in a row that must agree, those without any answer aside."""
STANDS_S = 8.0
"""From the first to the last of them: a machine that is listed as ended may be listed as active again."""
EMPTY_LIST_S = 60.0
"""A list without a single row proves nothing for this long after one that had rows."""


@dataclass(frozen=True)
class Round:
    """What one round of looking showed, at `at` (UTC epoch seconds)."""

    at: float
    word: Life | None
    """What the provider says of the id; None: no answer."""
    listed: bool | None = None
    """Whether a list shows the machine as not ended; None: no list came back."""
    rows: int = 0
    """Machines of ours in that list, whatever their status."""
    settled: bool = False
    """Whether it was bought so long ago that the provider must know its id."""


@dataclass(frozen=True)
class EndProof:
    """The evidence so far that one machine has ended."""

    ordered: bool = False
    """The provider took an order to end it."""
    agreeing: int = 0
    stood_s: float = 0.0
    """For how long the agreeing rounds have agreed."""
    last_at: float | None = None
    """When a round last showed anything."""
    rows_at: float | None = None
    """When a list last had rows."""
    alive: bool = False
    """Whether the last round showed it alive and not ending."""

    @property
    def needs_order(self) -> bool:
        """Whether the order to end it has to be sent, or sent again."""
        return not self.ordered or self.alive

    @property
    def complete(self) -> bool:
        """Whether the machine may be called gone."""
        return self.agreeing >= ROUNDS and self.stood_s >= STANDS_S

    def after(self, seen: Round, *, ordered: bool) -> EndProof:
        """The evidence with one more round. ordered: the order to end it was taken in this round."""
        ordered = ordered or self.ordered
        if seen.word is None and seen.listed is None:
            return replace(self, ordered=ordered)  # silence says nothing, not even that it lives
        rows_at = seen.at if seen.rows else self.rows_at
        alive = seen.word == "alive" or (seen.word is None and bool(seen.listed))
        proof = replace(self, ordered=ordered, rows_at=rows_at, alive=alive, last_at=seen.at)
        if not proof._shows_gone(seen):
            return replace(proof, agreeing=0, stood_s=0.0)
        since_s = 0.0 if self.last_at is None or not self.agreeing else seen.at - self.last_at
        return replace(proof, agreeing=self.agreeing + 1, stood_s=self.stood_s + since_s)

    def _shows_gone(self, seen: Round) -> bool:
        if seen.listed or seen.word in ("alive", "terminating"):
            return False
        if seen.word == "gone":
            return True
        if seen.word == "unknown":
            # Without a list, as where a stranger's odd row is all that it has, both have to hold.
            return (self.ordered and seen.settled) if seen.listed is None else (self.ordered or seen.settled)
        if seen.listed is None:
            return False
        return self.ordered and not self._suspiciously_empty(seen)

    def _suspiciously_empty(self, seen: Round) -> bool:
        """Only lists speak here: the provider does not answer for the id."""
        return seen.rows == 0 and (self.rows_at is None or seen.at - self.rows_at < EMPTY_LIST_S)

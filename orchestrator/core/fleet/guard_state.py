"""What is known about the guard of a rented machine, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.agent.contract.answers import GuardStatus
from orchestrator.core.typed_json import encode

SELF = "self"
KINDS_ON_BOX = ("key-on-box", SELF)
"""Guards that run on the machine itself and report their state."""


@dataclass(frozen=True)
class GuardState:
    """Kind none, watcher, key-on-box or self. Times are UTC epoch seconds."""

    kind: str = "none"
    armed: bool = False
    ends_at: float | None = None
    """The latest moment at which the guard acts."""
    acts_at: float | None = None
    """When it acts if nothing changes."""
    leased_until: float | None = None
    """Before this moment it does not act."""
    problem: str | None = None
    holding: int = 0
    """Checkpoints that only this machine has."""

    def to_json(self) -> dict[str, object]:
        """`guard` of `gptctl status --json`; the lease and what follows only for a guard on the machine."""
        value = encode(self)
        return value if self.kind in KINDS_ON_BOX else {key: value[key] for key in ("kind", "armed", "ends_at")}


def reported_guard(known: GuardState, report: GuardStatus, now: float, *, same_s: float) -> GuardState:
    """The guard after the machine's own answer. Moments within same_s of the known ones stay."""
    if report["kind"] not in KINDS_ON_BOX:
        return replace(known, armed=False)

    def moment(before: float | None, left_s: float | None) -> float | None:
        if left_s is None or (before is not None and abs(now + left_s - before) <= same_s):
            return before
        return now + left_s

    return GuardState(
        kind=report["kind"],
        armed=report["armed"],
        ends_at=moment(known.ends_at, report.get("deadline_left_s")),
        acts_at=moment(known.acts_at, report.get("left_s")),
        leased_until=moment(known.leased_until, report.get("lease_left_s")),
        problem=report.get("problem"),
        holding=report.get("holding", 0),
    )

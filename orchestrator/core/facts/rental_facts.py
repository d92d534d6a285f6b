"""What is known about a rental besides its row: the machine's life for the bill, its guard, its host key.

Nothing here is a secret. Reading and writing follow the rules of run_facts.py.

Example: `RentalFacts.from_json({"reached": 1.0, "active_at": 0.5}).life.active_at` -> 0.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypedDict

from orchestrator.core.fleet.guard_state import GuardState
from orchestrator.core.money.billing import MachineLife, SettledBill
from orchestrator.core.money.counted_time import Reading
from orchestrator.core.ports import Address
from orchestrator.core.typed_json import decode, encode, flat


@dataclass(frozen=True)
class GivenBack:
    """A machine of this rental that was unfit and was given back; it costs money anyway."""

    instance_id: str | None = None
    life: MachineLife = field(default=MachineLife(), metadata=flat)


@dataclass(frozen=True)
class Node:
    """A machine beside the first, where several are rented as one: what the rental's row and facts say of the first."""

    instance_id: str | None = None
    address: Address = field(default=Address())
    ends_at: float | None = None
    private_address: str = ""
    region: str = ""
    zone: str = ""
    image: str = ""
    host_key: str | None = None
    rekeyed: str | None = None
    reached: float | None = None
    life: MachineLife = field(default=MachineLife(), metadata=flat)
    guard: GuardState | None = None


OF_NODE = frozenset(each.name for each in fields(Node))
"""What each machine of a rental has for itself; all else is the rental's."""


def with_node(more: Sequence[Node], node: int, own: Mapping[str, object]) -> tuple[Node, ...]:
    """The same machines with these fields of the node's own; node: from 1."""
    found = [*more, *[Node()] * (node - len(more))]
    found[node - 1] = replace(found[node - 1], **own)  # type: ignore[arg-type]
    return tuple(found)


@dataclass(frozen=True)
class RentalFacts:
    """Every key that a rental keeps beside its row. Times are UTC epoch seconds; None: not known, or not yet."""

    region: str = ""
    zone: str = ""
    image: str = ""
    """The machine image it was made from, by its id."""
    private_address: str = ""
    """IPv4 address at which other machines of the account reach it."""
    host_key: str | None = None
    """Fingerprint of the host key that gptctl made."""
    rekeyed: str | None = None
    """The instance whose host key was replaced over the first session."""
    reached: float | None = None
    """When its agent first answered."""
    life: MachineLife = field(default=MachineLife(), metadata=flat)
    guard: GuardState | None = None
    given_back: tuple[GivenBack, ...] = ()
    more: tuple[Node, ...] = ()
    """The machines of its second node and on."""
    bill: SettledBill | None = None
    clock: Reading | None = None
    """This computer's clocks when it first held a machine: the bill counts from there, whatever the wall clock does."""
    ceiling_usd: float | None = None
    """What all its runs together may cost; None: each run has its own ceiling."""
    ceiling_h: float | None = None
    """For how long it may be held, where a run has used some of its max_hours on machines before."""
    spot: bool = False
    """Whether the machine was bought on the spot market."""
    fetch_mb_per_s: float | None = None
    """How fast its checkpoints came here, where that was enough to tell."""
    replaces: str = ""
    """The rental in whose place a sweep took it, after that machine was gone."""
    adopted_at: float | None = None
    """When this ledger took the machine over."""

    def to_json(self) -> dict[str, object]:
        """What the ledger stores; unknown facts are omitted."""
        return {key: value for key, value in encode(self).items() if value not in (None, "", [])}

    @classmethod
    def from_json(cls, value: object) -> RentalFacts:
        """The facts of a stored object; missing keys and wrong types count as unknown."""
        return decode(cls, value, lenient=True)


class RentalFactChanges(TypedDict, total=False):
    """The keywords of set_rental_facts: fields of RentalFacts."""

    region: str
    zone: str
    image: str
    private_address: str
    host_key: str | None
    rekeyed: str | None
    reached: float | None
    life: MachineLife
    guard: GuardState | None
    given_back: tuple[GivenBack, ...]
    more: tuple[Node, ...]
    bill: SettledBill | None
    clock: Reading | None
    ceiling_usd: float | None
    ceiling_h: float | None
    spot: bool
    fetch_mb_per_s: float | None
    replaces: str
    adopted_at: float | None

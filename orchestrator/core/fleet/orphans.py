"""Machines that may have been left behind: which there are, what they cost, and which are past their deadline. Pure.

Only machines with our tag or our name come in here. That this ledger does not know one says nothing: another laptop may
drive it. What counts is the deadline, which the machine's name shows to all.

Example::

    rows = survey(provider.machines(), {rental.id: KnownRental(rental.created_at) for rental in ledger.rentals()}, now)
    [row.instance_id for row in past_in_both(rows, survey(provider.machines(), known, later))]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from orchestrator.core.errors import UserError
from orchestrator.core.fleet import machine_names
from orchestrator.core.ports import Instance

GRACE_S = 300.0
"""A machine is past its deadline only this long after it: clocks differ, and lists lag."""
LEFT_OVER_S = 7 * 86_400.0
"""For so long after its end a rental's machine is looked for by every command that lists: one that comes back to life
does so within minutes. `orphans` and the watcher look for longer."""
UNLISTED = "unlisted"
"""Status of a machine that its provider knows by its id and no list shows."""
UNHEARD = "no answer"
"""Status of a machine that the ledger holds while its provider's list does not come."""
ENDED = frozenset({"terminating", "terminated", "preempted"})
"""Statuses in which the machine costs nothing any more."""


@dataclass(frozen=True)
class KnownRental:
    """What this ledger knows of a rental. `created_at`: UTC epoch seconds."""

    created_at: float
    over: bool = False
    """Nothing needs its machine: the rental was released, or all its runs have ended and none is kept."""
    machines: tuple[Instance, ...] = ()
    """What it holds, whether a list shows it or not: its machine, and second ones that nobody saw the end of."""


@dataclass(frozen=True)
class Orphan:
    """A machine with our tag or name. Times in seconds (`ends_at`: UTC epoch), money in USD; None: unknown."""

    provider: str
    instance_id: str
    rental: str
    machine: str
    status: str
    age_s: float | None
    price_per_hour_usd: float
    cost_usd: float | None
    """Age times price: the most that it can have cost."""
    ends_at: float | None
    known: bool
    """Whether this ledger has its rental."""
    past: bool
    """Alive more than GRACE_S after its deadline, and surely ours: this ledger has its rental, or it has our tag. Our
    name alone may be anyone's: such a machine is shown, and ended by its id only."""
    over: bool
    """Alive, and this ledger says that nothing needs it any more."""
    name: str = ""
    region: str = ""

    @property
    def alive(self) -> bool:
        """Whether it still costs money."""
        return self.status not in ENDED

    def to_json(self) -> dict[str, object]:
        """One element of `machines` in `gptctl orphans --json`."""
        return asdict(self)


def deadline(instance: Instance) -> float | None:
    """When a watcher may end it: what its name says, since the name can be moved; the tag's where it says nothing."""
    marked = machine_names.ends_at(instance.name, instance.tags)
    return instance.ends_at if marked is None else marked


def survey(machines: Iterable[Instance], known: Mapping[str, KnownRental], now: float) -> list[Orphan]:
    """Every machine of ours, those past their deadline first, then those nothing needs, then the oldest.

    known: the rentals of this ledger, by id.
    """
    rows = [_row(instance, instance.rental_id, known, now) for instance in machines if instance.rental_id]
    return sorted(rows, key=lambda row: (not row.past, not row.over, -(row.age_s or 0.0), row.instance_id))


def unlisted(known: Mapping[str, KnownRental], listed: Iterable[Instance], provider: str) -> list[Instance]:
    """Machines of this provider that the ledger holds and no list shows."""
    shown = {each.instance_id for each in listed}
    held = [machine for each in known.values() for machine in each.machines]
    return [each for each in held if each.provider == provider and each.instance_id not in shown]


def _row(instance: Instance, rental: str, known: Mapping[str, KnownRental], now: float) -> Orphan:
    here = known.get(rental)
    since = here.created_at if here is not None and instance.launched_at is None else instance.launched_at
    age_s = None if since is None else max(0.0, now - since)
    ends_at, alive = deadline(instance), instance.status not in ENDED
    surely_ours = rental in known or machine_names.RENTAL_TAG in instance.tags
    return Orphan(
        provider=instance.provider,
        instance_id=instance.instance_id,
        rental=rental,
        machine=instance.machine,
        status=instance.status,
        age_s=age_s,
        price_per_hour_usd=instance.price_per_hour_usd,
        cost_usd=None if age_s is None else age_s / 3600 * instance.price_per_hour_usd,
        ends_at=ends_at,
        known=rental in known,
        past=surely_ours and alive and ends_at is not None and now - ends_at > GRACE_S and instance.status != UNHEARD,
        over=alive and here is not None and here.over,
        name=instance.name,
        region=instance.region,
    )


def past_in_both(first: Sequence[Orphan], second: Sequence[Orphan]) -> list[Orphan]:
    """What may be ended without asking by id: machines that both lists show past the deadline, as the second has them.

    One list is not enough: it may be old, and a deadline may just have been moved.
    """
    before = {(row.provider, row.instance_id) for row in first if row.past}
    return [row for row in second if row.past and (row.provider, row.instance_id) in before]


def named(rows: Sequence[Orphan], wanted: str | None) -> list[Orphan]:
    """The living machines of this instance or rental id (a rental may have been bought twice); None: all.

    Raises UserError when the id fits none.
    """
    found = [row for row in rows if row.alive and wanted in (None, row.instance_id, row.rental)]
    if wanted is not None and not found:
        raise UserError(f"no running machine of ours is called {wanted!r}", "gptctl orphans lists them")
    return found

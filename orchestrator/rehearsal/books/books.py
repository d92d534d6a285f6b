"""The cloud's own books: a journal of what happened, and what each machine owes. The oracle of money tests.

The journal is the truth: the state of every instance is what its lines add up to, so the cloud survives kill -9, and
`instances_at` can show the account as it was some seconds ago. Reading needs no server and no key.

An instance is billed per started minute, from `active` (healthy for the first time) to its termination or preemption,
at the price of its launch; one that never became active owes nothing. A shutdown of its operating system changes
nothing.

Example: `read_books(Path("state"))["total_cents"]`
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Required, TypedDict, cast

FILE_NAME = "books.jsonl"
INTENT_TAG = "gptctl-intent"
MINUTES_PER_HOUR = 60


@dataclass(frozen=True)
class Instance:
    """One machine of the account. Times are UTC epoch seconds; None: it has not happened."""

    id: str
    name: str
    type: str
    region: str
    price_cents_per_hour: int
    minute_s: float
    """Length of a billing minute; 60 except in tests."""
    launched_at: float
    ssh_key_name: str = ""
    image: str = ""
    hostname: str = ""
    file_systems: tuple[str, ...] = ()
    """Names only: nothing is mounted."""
    ip: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    jupyter_token: str = ""
    boot_s: float = 0.0
    faults: tuple[str, ...] = ()
    """Names of the faults that fired at its launch."""
    foreign: bool = False
    """Belongs to another user of the account: it has no machine, and gptctl must never touch it."""
    status: str = "booting"
    active_at: float | None = None
    ip_at: float | None = None
    """When the API begins to show the address."""
    billed_from: float | None = None
    ended_at: float | None = None
    """End of billing: terminated or preempted."""
    gone_at: float | None = None
    """When lists cease to show it."""
    relapses_at: float | None = None
    """Until when the API calls it terminated although it lives."""

    @property
    def alive(self) -> bool:
        """Whether it exists; it costs money once it was active."""
        return self.ended_at is None


class SshKey(TypedDict):
    """A login key of the account."""

    id: str
    name: str
    public_key: str


class Event(TypedDict, total=False):
    """One line of a journal: `event` and `time` (UTC epoch seconds) always, the rest by its kind."""

    event: Required[str]
    time: Required[float]
    id: str
    """The instance, or the SSH key."""
    instance: dict[str, Any]
    """An Instance as JSON, of `launched`."""
    key: SshKey
    name: str
    argument: str
    times: int
    status: str
    billed: bool
    percent: float
    ip_at: float
    taken_at: float
    gone_at: float
    relapses_at: float
    ip: str


class InstanceRow(TypedDict):
    """An instance as `--books` prints it. Times are UTC epoch seconds."""

    id: str
    name: str
    type: str
    region: str
    tags: dict[str, str]
    status: str
    launched_at: float
    active_at: float | None
    terminated_at: float | None
    price_cents_per_hour: int
    minute_s: float
    billed_minutes: int
    cost_cents: int
    alive: bool
    foreign: bool
    faults: list[str]


class Books(TypedDict):
    """What `--books` prints. The total leaves out instances of other people."""

    instances: list[InstanceRow]
    launches_by_intent: dict[str, int]
    total_cents: int
    alive: list[str]


def billed_minutes(instance: Instance, now: float) -> int:
    """Started minutes from `billed_from` to the end or now; 0 for one that was never billed."""
    if instance.billed_from is None:
        return 0
    end = now if instance.ended_at is None else instance.ended_at
    return max(1, math.ceil((end - instance.billed_from) / instance.minute_s))


def cost_cents(instance: Instance, now: float) -> int:
    """minutes x price per hour / 60 in whole cents, rounded once per instance, half a cent up."""
    exact = billed_minutes(instance, now) * instance.price_cents_per_hour
    return math.floor(exact / MINUTES_PER_HOUR + 0.5)


class Journal:
    """The open journal. `append` returns when the line is on the disk."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self.events = read_events(file)
        _drop_torn_line(file)
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def append(self, kind: str, **fields: object) -> Event:
        """Adds one line, stamped with the current time but never earlier than the line before."""
        with self._lock:
            last = self.events[-1]["time"] if self.events else 0.0
            event = cast(Event, {"event": kind, "time": max(time.time(), last), **fields})
            os.write(self._file, json.dumps(event).encode() + b"\n")
            os.fsync(self._file)
            self.events.append(event)
        return event

    def close(self) -> None:
        os.close(self._file)


def read_events(file: Path) -> list[Event]:
    """Every whole line, oldest first. Drops a last line that a crash tore."""
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _drop_torn_line(file: Path) -> None:
    if file.exists():
        content = file.read_bytes()
        os.truncate(file, content.rfind(b"\n") + 1)


def instances_at(events: Iterable[Event], moment: float = math.inf) -> dict[str, Instance]:
    """Every instance ever, in the order of launch, as the events up to `moment` leave it."""
    found: dict[str, Instance] = {}
    for event in events:
        if event["time"] > moment:
            break
        if event["event"] == "launched":
            found[event["instance"]["id"]] = _launched(event)
        elif event["event"] in CHANGES:
            found[event["id"]] = CHANGES[event["event"]](found[event["id"]], event)
    return found


def _launched(event: Event) -> Instance:
    fields = dict(event["instance"])
    tags = tuple((key, value) for key, value in fields.pop("tags", ()))
    return Instance(**{**fields, "tags": tags, "faults": tuple(fields.pop("faults", ())), "launched_at": event["time"]})


def _active(old: Instance, event: Event) -> Instance:
    since = old.active_at or event["time"]
    return replace(old, status="active", active_at=since, billed_from=old.billed_from or since, ip_at=event["ip_at"])


def _unhealthy(old: Instance, event: Event) -> Instance:
    return replace(old, status="unhealthy", billed_from=event["time"] if event["billed"] else old.billed_from)


def _ended(old: Instance, event: Event) -> Instance:
    return replace(old, status=event["status"], ended_at=old.ended_at or event["time"])


def _renamed(old: Instance, event: Event) -> Instance:
    return replace(old, name=event["name"])


def _wiped(old: Instance, event: Event) -> Instance:
    return replace(old, status="terminated", gone_at=event["gone_at"])


def _relapsing(old: Instance, event: Event) -> Instance:
    return replace(old, relapses_at=event["relapses_at"])


def _moved(old: Instance, event: Event) -> Instance:
    return replace(old, ip=event["ip"])


CHANGES = {
    "active": _active,
    "unhealthy": _unhealthy,
    "renamed": _renamed,
    "ended": _ended,
    "wiped": _wiped,
    "relapsing": _relapsing,
    "moved": _moved,
}
"""Event -> how it changes an instance. `ended` stops the bill; `wiped`: no process of it is left."""


def read_books(state: Path, now: float | None = None) -> Books:
    """The books as JSON, at `now` (UTC epoch seconds; None: the current time)."""
    moment = time.time() if now is None else now
    instances = list(instances_at(read_events(state / FILE_NAME)).values())
    return {
        "instances": [_row(instance, moment) for instance in instances],
        "launches_by_intent": _by_intent(instances),
        "total_cents": sum(cost_cents(instance, moment) for instance in instances if not instance.foreign),
        "alive": [instance.id for instance in instances if instance.alive and not instance.foreign],
    }


def _row(instance: Instance, now: float) -> InstanceRow:
    return {
        "id": instance.id,
        "name": instance.name,
        "type": instance.type,
        "region": instance.region,
        "tags": dict(instance.tags),
        "status": instance.status,
        "launched_at": instance.launched_at,
        "active_at": instance.active_at,
        "terminated_at": instance.ended_at,
        "price_cents_per_hour": instance.price_cents_per_hour,
        "minute_s": instance.minute_s,
        "billed_minutes": billed_minutes(instance, now),
        "cost_cents": cost_cents(instance, now),
        "alive": instance.alive,
        "foreign": instance.foreign,
        "faults": list(instance.faults),
    }


def _by_intent(instances: Iterable[Instance]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for instance in instances:
        intent = dict(instance.tags).get(INTENT_TAG)
        if intent is not None:
            counts[intent] = counts.get(intent, 0) + 1
    return counts

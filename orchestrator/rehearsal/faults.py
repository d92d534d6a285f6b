"""The fault script: which lies are armed, how often each still fires, and a journal of those that fired.

Written `NAME[@ARGUMENT][*TIMES]`, several with commas: `no-capacity@us-west-1*2,terminate-500`. TIMES is 1 unless the
table says otherwise; `*forever` never runs out. The journal carries the faults over a restart and lets a test assert
that its fault fired.

Example::

    faults.arm("500@list*2")
    faults.take("500", "list")        # a Fault, and one less is left; None when none is armed for this operation
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from orchestrator.rehearsal.books.books import Event, Journal
from orchestrator.rehearsal.catalogue import REGIONS

FILE_NAME = "faults.jsonl"
FOREVER = 1_000_000_000
SPELLING = re.compile(r"^(?P<name>[a-z0-9-]+)(?:@(?P<argument>[^*@,\s]+))?(?:\*(?P<times>[1-9]\d{0,8}|forever))?$")


@dataclass(frozen=True)
class Kind:
    """One lie the cloud can tell."""

    what: str
    """In words; ARG is the text after the @."""
    default: str = ""
    """The ARG of a fault written without one. A number accepts numbers, an operation operations, else `choices`."""
    times: int = 1
    choices: tuple[str, ...] = ()


PLACES = tuple(REGIONS)
OPERATIONS = ("types", "launch", "list", "get", "rename", "terminate", "keys", "images", "file-systems", "audit", "any")

KINDS: dict[str, Kind] = {
    # what launches do
    "no-capacity": Kind("a launch (in region ARG) is refused, and the region is unlisted for 5 s", choices=PLACES),
    "listed-but-refused": Kind("a launch (in region ARG) is refused while the region stays listed", choices=PLACES),
    "sold-out": Kind("the list of types shows no capacity (in region ARG)", choices=PLACES),
    "quota": Kind("a launch is refused for lack of quota"),
    "empty-ids": Kind("a launch answers 200 with no id; it bought one unless ARG is `nothing`", choices=("nothing",)),
    "price-change": Kind("after the next list of types, prices are ARG percent of what they were", "150"),
    # what booting does
    "slow-boot": Kind("a machine takes ARG seconds to boot", "20"),
    "stuck-booting": Kind("a machine never leaves booting"),
    "unhealthy": Kind("a machine becomes unhealthy instead of active, and is not billed"),
    "unhealthy-billed": Kind("a machine becomes unhealthy instead of active, and is billed"),
    "bad-gpu": Kind("a machine on which torch fails with CUDA error 802"),
    "newer-image": Kind("a machine with a newer image than the others"),
    "active-without-ip": Kind("a machine is active ARG seconds before its address is shown", "3"),
    "host-key-ignored": Kind("a machine whose image ignores the injected host key"),
    "reused-ip": Kind("a machine gets the address of the one that ended last"),
    # what machines do later
    "ssh-drop": Kind("once a run there has reached step ARG, every SSH session is cut", "1"),
    "preempt": Kind("once a run there has reached step ARG, the machine is taken away", "1"),
    "notice": Kind("once a run there has reached step ARG, its metadata announces its preemption in two minutes", "1"),
    "rebalance": Kind("once a run there has reached step ARG, its metadata recommends to move on", "1"),
    "reboot": Kind("once a run there has reached step ARG, the machine reboots", "1"),
    # what ending does
    "terminate-ignored": Kind(
        "terminate answers 200 and does nothing; ARG `unlisted`: it names no instance either", choices=("unlisted",)
    ),
    "terminate-500": Kind("terminate answers 500 and does nothing"),
    "terminate-401": Kind("terminate answers 401 and does nothing"),
    "slow-terminate": Kind("a machine ends at once and is listed as `terminating` for ARG seconds", "20"),
    "rename-ignored": Kind("rename answers 200 with the new name and keeps the old one"),
    # what the API does; ARG is an operation: types launch list get rename terminate keys images audit, or any
    "429": Kind("too many requests, with Retry-After: 1; ARG: the operation", "any"),
    "500": Kind("internal error, nothing done; ARG: the operation", "any"),
    "timeout-before-effect": Kind("the connection is closed without an answer, nothing done", "launch"),
    "timeout-after-effect": Kind("it is done, then the connection is closed without an answer", "launch"),
    "500-after-effect": Kind("it is done, then the answer is 500", "launch"),
    "unknown-error-code": Kind("an error with an undocumented code, nothing done", "launch"),
    "wrong-types": Kind("an answer with strings for numbers and null for lists", "list"),
    "broken-body": Kind("an answer cut in the middle", "list"),
    "giant-answer": Kind("an answer of 1 GB", "list"),
    "redirect": Kind("a 302 to another host; ARG: the operation", "any"),
    "list-lag": Kind("a list or get shows the account as it was ARG seconds ago", "10"),
    "key-revoked": Kind("the API refuses the key from now on", "any", FOREVER),
    "decoys": Kind("ARG machines of other people appear in the account at once", "3"),
}


@dataclass(frozen=True)
class Fault:
    """An armed lie; `left` counts how often it still fires."""

    name: str
    argument: str
    left: int


class Armed(TypedDict):
    """A Fault as JSON."""

    name: str
    argument: str
    left: int


class Script(TypedDict):
    """What is armed now and everything that fired."""

    armed: list[Armed]
    fired: list[Event]


def parse(script: str) -> list[Fault]:
    """The faults of a script. Raises ValueError that names the part and the known ones."""
    return [_parse(part.strip()) for part in script.split(",") if part.strip()]


def _parse(part: str) -> Fault:
    match = SPELLING.match(part)
    if not match or match["name"] not in KINDS:
        raise ValueError(f"unknown fault {part!r}; known: {', '.join(KINDS)}; written NAME[@ARGUMENT][*TIMES]")
    kind = KINDS[match["name"]]
    argument = match["argument"] or kind.default
    if kind.default.isdigit() and not re.fullmatch(r"-?\d+(\.\d+)?", argument):
        raise ValueError(f"fault {part!r}: {argument!r} is not a number")
    known = OPERATIONS if kind.default in OPERATIONS else ("", *kind.choices)
    if not kind.default.isdigit() and argument not in known:
        raise ValueError(f"fault {part!r}: {argument!r} is not accepted; known: {', '.join(filter(None, known))}")
    times = {"": kind.times, "forever": FOREVER}.get(match["times"] or "")
    return Fault(match["name"], argument, times if times is not None else int(match["times"]))


class Faults:
    """The armed faults of one cloud and their journal."""

    def __init__(self, state: Path) -> None:
        self._lock = threading.RLock()
        self._journal = Journal(state / FILE_NAME)
        self._armed: list[Fault] = []
        for event in self._journal.events:
            self._replay(event)

    def _replay(self, event: Event) -> None:
        if event["event"] == "armed":
            self._armed.append(Fault(event["name"], event["argument"], event["times"]))
        elif event["event"] == "cleared":
            self._armed = [fault for fault in self._armed if event["name"] not in ("", fault.name)]
        else:
            self._use_up(Fault(event["name"], event["argument"], 0))

    def arm(self, script: str) -> list[Fault]:
        """Arms the script's faults, behind those already armed. Raises ValueError."""
        parsed = parse(script)
        with self._lock:
            for fault in parsed:
                self._journal.append("armed", name=fault.name, argument=fault.argument, times=fault.left)
                self._armed.append(fault)
        return parsed

    def clear(self, name: str = "") -> None:
        """Disarms every fault, or those of one name."""
        with self._lock:
            self._journal.append("cleared", name=name)
            self._armed = [fault for fault in self._armed if name not in ("", fault.name)]

    def peek(self, name: str, *arguments: str) -> Fault | None:
        """The first armed fault of that name for one of these arguments; no arguments: for any. Does not fire it."""
        with self._lock:
            accepted = {"", "any", *arguments}
            matching = (one for one in self._armed if one.name == name)
            return next((one for one in matching if not arguments or one.argument in accepted), None)

    def take(self, name: str, *arguments: str, on: str = "") -> Fault | None:
        """Fires the fault that peek returns and journals it. `on`: the instance or operation."""
        with self._lock:
            found = self.peek(name, *arguments)
            if found:
                self._journal.append("fired", name=found.name, argument=found.argument, on=on or " ".join(arguments))
                self._use_up(found)
        return found

    def first(self, names: Iterable[str], operation: str) -> Fault | None:
        """Takes the first of these that is armed for the operation."""
        return next((found for name in names if (found := self.take(name, operation))), None)

    def _use_up(self, used: Fault) -> None:
        for index, fault in enumerate(self._armed):
            if (fault.name, fault.argument) == (used.name, used.argument):
                self._armed[index] = replace(fault, left=fault.left - 1)
                break
        self._armed = [fault for fault in self._armed if fault.left > 0]

    def as_json(self) -> Script:
        """The armed faults and the journal of the fired ones."""
        with self._lock:
            armed: list[Armed] = [{"name": one.name, "argument": one.argument, "left": one.left} for one in self._armed]
            fired = [event for event in self._journal.events if event["event"] == "fired"]
        return {"armed": armed, "fired": fired}

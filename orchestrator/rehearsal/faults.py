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
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from orchestrator.rehearsal.books.books import Event, Journal
from orchestrator.rehearsal.catalogue import REGIONS

FILE_NAME = "faults.jsonl"
FOREVER = 1_000_000_000
MOMENTS = ("launch", "terminate")
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
    window: bool = False
    """It lasts ARG seconds from its first use, or from the next launch or terminate: ARG `launch+12`."""


PLACES = tuple(REGIONS)
OPERATIONS = ("types", "launch", "list", "get", "rename", "terminate", "keys", "images", "file-systems", "audit", "any")

KINDS: dict[str, Kind] = {
    # what launches do
    "no-capacity": Kind("a launch (in region ARG) is refused, and the region is unlisted for 5 s", choices=PLACES),
    "listed-but-refused": Kind("a launch (in region ARG) is refused while the region stays listed", choices=PLACES),
    "sells-only": Kind("a launch is refused while ARG machines of ours run", "1", FOREVER),
    "sold-out": Kind("the list of types shows no capacity (in region ARG)", choices=PLACES),
    "quota": Kind("a launch is refused for lack of quota"),
    "odd-type": Kind("the list of types begins with a new one whose fields are missing", times=FOREVER),
    "empty-ids": Kind("a launch answers 200 with no id; it bought one unless ARG is `nothing`", choices=("nothing",)),
    "price-change": Kind("after the next list of types, prices are ARG percent of what they were", "150"),
    "dearer-launch": Kind("a machine costs ARG percent of the listed price, as its rows in lists show", "150"),
    "double-launch": Kind("a launch buys two machines and names one"),
    "refused-but-bought": Kind(
        "a launch is refused for lack of capacity (or ARG `quota`), and buys a machine", choices=("quota",)
    ),
    # what booting does
    "slow-boot": Kind("a machine takes ARG seconds to boot", "20"),
    "stuck-booting": Kind("a machine never leaves booting"),
    "unhealthy": Kind("a machine becomes unhealthy instead of active, and is not billed"),
    "unhealthy-billed": Kind("a machine becomes unhealthy instead of active, and is billed"),
    "bad-gpu": Kind("a machine on which torch fails with CUDA error 802"),
    "newer-image": Kind("a machine with a newer image than the others"),
    "active-without-ip": Kind("a machine is active ARG seconds before its address is shown", "3"),
    "host-key-ignored": Kind("a machine whose image ignores the injected host key"),
    "clock-off": Kind("a machine whose clock is ARG seconds ahead", "86400"),
    "reused-ip": Kind("a machine gets the address of the one that ended last"),
    # what machines do later
    "ssh-drop": Kind("once a run there has reached step ARG, every SSH session is cut", "1"),
    "preempt": Kind("once a run there has reached step ARG, the machine is taken away", "1"),
    "notice": Kind("once a run there has reached step ARG, its metadata announces its preemption in two minutes", "1"),
    "rebalance": Kind("once a run there has reached step ARG, its metadata recommends to move on", "1"),
    "reboot": Kind("once a run there has reached step ARG, the machine reboots", "1"),
    "reboot-elsewhere": Kind("once a run there has reached step ARG, it reboots with another address", "1"),
    "frozen": Kind("once a run there has reached step ARG, its SSH accepts and never answers, billed on", "1"),
    "ssh-gone": Kind("once a run there has reached step ARG, every process ends; SSH refuses, billed on", "1"),
    # what ending does
    "terminate-ignored": Kind(
        "terminate answers 200 and does nothing; ARG `unlisted`: it names no instance either", choices=("unlisted",)
    ),
    "terminate-500": Kind("terminate answers 500 and does nothing"),
    "terminate-401": Kind("terminate answers 401 and does nothing"),
    "terminate-relapse": Kind("terminate answers 200; listed as terminated for ARG s, then active as ever", "6"),
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
    "list-empty": Kind("lists are empty for ARG seconds", "12", window=True),
    "list-untagged": Kind("no answer shows tags for ARG seconds", "12", window=True),
    "list-nameless": Kind("no answer shows tags or names for ARG seconds", "12", window=True),
    "list-paged": Kind("for ARG seconds a list has one row and a token for the next page", "12", window=True),
    "list-odd-row": Kind(
        "lists have a row of a stranger that fits no document; ARG: what is odd; `ours`: our rows have only an id",
        "stranger",
        FOREVER,
        choices=("stranger", "id", "type", "region", "ours"),
    ),
    "get-missing": Kind("a get answers 404 for every instance for ARG seconds", "12", window=True),
    "silent": Kind("the API accepts requests and never answers, for ARG seconds", "12", window=True),
    "html": Kind("the API answers 200 with an HTML page for ARG seconds, nothing done", "12", window=True),
    "error-in-200": Kind("the API answers 200 with an error for ARG seconds, nothing done", "12", window=True),
    "key-revoked": Kind("the API refuses the key from now on", "any", FOREVER),
    "decoys": Kind("ARG machines of other people appear in the account at once", "3"),
}


@dataclass(frozen=True)
class Fault:
    """An armed lie; `left` counts how often it still fires."""

    name: str
    argument: str
    left: int

    def __str__(self) -> str:
        return f"{self.name}@{self.argument}" if self.argument else self.name


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
    moment, _, seconds = argument.rpartition("+") if kind.window else ("", "", argument)
    if moment not in ("", *MOMENTS):
        raise ValueError(f"fault {part!r}: {moment!r} is not a moment; known: {', '.join(MOMENTS)}")
    if kind.default.isdigit() and not re.fullmatch(r"-?\d+(\.\d+)?", seconds):
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
        self._open_until: dict[str, float] = {}
        for event in self._journal.events:
            self._replay(event)

    def _replay(self, event: Event) -> None:
        if event["event"] == "armed":
            self._armed.append(Fault(event["name"], event["argument"], event["times"]))
        elif event["event"] == "cleared":
            self._drop(event["name"])
        else:
            self._use_up(Fault(event["name"], event["argument"], 0))
            self._open(event)

    def _open(self, fired: Event) -> None:
        if KINDS[fired["name"]].window:
            self._open_until[fired["name"]] = fired["time"] + float(fired["argument"].rpartition("+")[2])

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
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._armed = [fault for fault in self._armed if name not in ("", fault.name)]
        self._open_until = {each: until for each, until in self._open_until.items() if name not in ("", each)}

    def during(self, name: str) -> float:
        """Seconds for which a lie with a window still lasts, 0: it is not told. Fires one that waits for its use."""
        with self._lock:
            armed = (one for one in self._armed if one.name == name and "+" not in one.argument)
            if self._open_until.get(name, 0.0) <= time.time() and (waiting := next(armed, None)):
                self.take(name, waiting.argument)
            return max(0.0, self._open_until.get(name, 0.0) - time.time())

    def open_windows(self, moment: str) -> None:
        """Fires the lies that wait for this moment, `launch` or `terminate`."""
        with self._lock:
            for fault in [one for one in self._armed if one.argument.startswith(f"{moment}+")]:
                self.take(fault.name, fault.argument)

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
                where = on or " ".join(arguments)
                event = self._journal.append("fired", name=found.name, argument=found.argument, on=where)
                self._use_up(found)
                self._open(event)
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

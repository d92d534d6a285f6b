"""The guard's process: looks every second whether the machine is still needed, and ends it when it is not.

One per machine, held by a lock. ways_to_end.py ends the machine. A provider may be down and a key revoked, so the
process asks again, less and less often, and records what was wrong. It checks its way long before it needs it, so that
`status` can tell.

Example (started by guard.arm, never by hand)::

    python3 agent-HASH.pyz guard
"""

from __future__ import annotations

import fcntl
import os
import resource
import time
from typing import Callable, cast

from ..contract.names import FileName
from ..system import files, lease, processes
from ..system.paths import Places
from ..system.pause import Pause
from ..system.refusal import Refusal
from . import needed, observation, records, ways_to_end
from .trouble import Trouble

TICK_S = 1.0
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


def main(places: Places) -> int:
    """Runs until the machine is gone. A second guard goes at once."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the key
    lock = os.open(os.path.join(places.guard, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    guard = GuardProcess(places)
    while True:
        time.sleep(max(0.05, min(TICK_S, guard.tick())))


class GuardProcess:
    """What the process knows: its way to end the machine, the end it announced, and when it asks next."""

    def __init__(self, places: Places, clock: Callable[[], float] = lease.now_s) -> None:
        self.places = places
        self.clock = clock
        self.way: ways_to_end.ByKey | ways_to_end.ByPower | None = None
        self.said = ""
        self.pause = Pause(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self.ask_at_s = 0.0
        ended = records.read_notes(places).get("ended") or {}
        self.notes: records.Notes = {"guard": processes.identity(os.getpid()), "ended": ended, "ending": False}
        self.known = lease.read(places.guard)
        self._write()

    def tick(self) -> float:
        """One look. Returns the seconds until something is due."""
        current = records.read_valid_order(self.places)
        if current is None:
            return TICK_S
        self._keep_lease(current)
        way = self._way(current)
        if way.is_renewed():
            self.ask_at_s = 0.0
        left_s = self._left_s()
        if (left_s <= 0) != self.notes["ending"]:
            self._note(ending=left_s <= 0)
            self.ask_at_s = 0.0
            self.pause.reset()
        if left_s <= 0:
            self._end(way)
        else:
            self._check(way, left_s)
        return left_s if left_s > 0 else TICK_S

    def _way(self, order: records.Order) -> ways_to_end.ByKey | ways_to_end.ByPower:
        """A new order of another kind is a new way; else the one with the key in its memory stays."""
        if self.way is None or (order != self.way.order and order.get("kind") != self.way.order.get("kind")):
            self.way = ways_to_end.way_of(self.places, order)
        self.way.order = order
        return self.way

    def _left_s(self) -> float:
        ended = dict(self.notes["ended"])
        try:
            left_s = needed.left_s(observation.observe(self.places, ended, revive=True))
        except (OSError, Refusal, ValueError, TypeError, KeyError) as error:
            # What the runs need cannot be read: the machine lives until its deadline, and no longer.
            self._note(problem="cannot tell what is needed: %s" % type(error).__name__)
            return self._deadline_left_s() or 0.0
        self._note(ended=ended)
        return left_s

    def _deadline_left_s(self) -> float | None:
        return self.known["deadline_left_s"] if self.known else None

    def _keep_lease(self, order: records.Order) -> None:
        """A lease file that was lost must make the machine neither immortal nor dead: it is written again."""
        found = lease.read(self.places.guard)
        if found is None and self.known is not None:
            found = lease.renew(self.places.guard, order["lease_s"], self.known["deadline_left_s"])
        self.known = found

    def _end(self, way: ways_to_end.ByKey | ways_to_end.ByPower) -> None:
        if self.clock() >= self.ask_at_s and way.is_able():
            self._said(way.end(), "ended %s" % way.order["instance_id"])
            self._again_in(self.pause.next_s())

    def _check(self, way: ways_to_end.ByKey | ways_to_end.ByPower, left_s: float) -> None:
        """Whether it could end the machine, were it time."""
        if self.clock() < self.ask_at_s or not way.is_able():
            return
        trouble = way.check(left_s, self._deadline_left_s())
        self._said(trouble, way.well)
        if trouble is None:
            self.pause.reset()
            return self._again_in(way.check_every_s)
        self._again_in(self.pause.next_s())

    def _again_in(self, pause_s: float) -> None:
        self.ask_at_s = self.clock() + pause_s

    def _said(self, trouble: Trouble | None, good: str) -> None:
        text = trouble.text if trouble else good
        if text != self.said:
            print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, flush=True)
            self.said = text
        if trouble is None:
            self._note(accepted=True, problem=None)
        elif trouble.refused:
            self._note(accepted=False, problem=text)
        else:
            self._note(problem=text)  # a key that was accepted once is not worse for an API that is down

    def _note(self, **facts: object) -> None:
        """Written only when something changed: the disk is the training's."""
        notes = cast("records.Notes", {**self.notes, **facts})
        if notes != self.notes:
            self.notes = notes
            self._write()

    def _write(self) -> None:
        try:
            files.write_json(os.path.join(self.places.guard, FileName.STATE), self.notes)
        except OSError as error:
            print("cannot write state.json: %s" % error.strerror, flush=True)  # a full disk must not stop the guard

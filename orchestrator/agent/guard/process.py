"""The guard's process: looks every second whether the machine is still needed, and ends it when it is not.

One per machine, held by a lock. How it ends the machine is not its business (ends.py): a provider may be down and a
key revoked, so it asks again, ever less often, and writes down what was wrong. It tries long before it is needed, so
that `status` can tell.

Example (started by guard.arm, never by hand)::

    python3 agent-HASH.pyz guard
"""

from __future__ import annotations

import fcntl
import os
import resource
import time
from typing import Any

from ..contract.names import FileName
from ..job import jobs
from ..system import files, lease, processes
from ..system.paths import Places
from ..system.refusal import Refusal
from . import needed, order, ways_to_end
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
    watchman = Watchman(places)
    while True:
        time.sleep(max(0.05, min(TICK_S, watchman.tick())))


class Watchman:
    """What the process knows: its way to end the machine, the end it announced, and when it asks next."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.way: ways_to_end.ByKey | ways_to_end.ByPower | None = None
        self.said = ""
        self.pause_s = FIRST_PAUSE_S
        self.ask_at_s = 0.0
        ended = order.notes(places).get("ended") or {}
        self.notes: dict[str, Any] = {"guard": processes.identity(os.getpid()), "ended": ended, "ending": False}
        self.known = lease.read(places.guard)
        self._write()

    def tick(self) -> float:
        """One look. Returns the seconds until something is due."""
        current = order.order_of(self.places)
        if current is None:
            return TICK_S
        self._keep_lease(current)
        way = self._way(current)
        if way.is_renewed():
            self.ask_at_s = 0.0
        left_s = self._left_s()
        if (left_s <= 0) != self.notes["ending"]:
            self._note(ending=left_s <= 0)
            self.ask_at_s, self.pause_s = 0.0, FIRST_PAUSE_S
        if left_s <= 0:
            self._end(way)
        else:
            self._check(way, left_s)
        return left_s if left_s > 0 else TICK_S

    def _way(self, order: dict[str, Any]) -> ways_to_end.ByKey | ways_to_end.ByPower:
        """A new order of another kind is a new way; else the one with the key in its memory goes on."""
        if self.way is None or (order != self.way.order and order.get("kind") != self.way.order.get("kind")):
            self.way = ways_to_end.of(self.places, order)
        self.way.order = order
        return self.way

    def _left_s(self) -> float:
        ended = dict(self.notes["ended"])
        try:
            left_s = needed.left_s(self.places, ended, look=jobs.revive_quietly)
        except (OSError, Refusal, ValueError, TypeError, KeyError) as error:
            # What the runs need cannot be read: the machine lives until its deadline, and no longer.
            self._note(problem="cannot tell what is needed: %s" % type(error).__name__)
            return float((self.known or {}).get("deadline_left_s") or 0.0)
        self._note(ended=ended)
        return left_s

    def _keep_lease(self, order: dict[str, Any]) -> None:
        """A lease file that was lost must make the machine neither immortal nor dead: it is written again."""
        found = lease.read(self.places.guard)
        if found is None and self.known is not None:
            found = lease.renew(self.places.guard, order["lease_s"], self.known["deadline_left_s"])
        self.known = found

    def _end(self, way: ways_to_end.ByKey | ways_to_end.ByPower) -> None:
        if lease.now_s() >= self.ask_at_s and way.is_able():
            self._said(way.end(), "ended %s" % way.order["instance_id"])
            self._again_in(self.pause_s)
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

    def _check(self, way: ways_to_end.ByKey | ways_to_end.ByPower, left_s: float) -> None:
        """Whether it could end the machine, were it time."""
        if lease.now_s() < self.ask_at_s or not way.is_able():
            return
        trouble = way.check(left_s, (self.known or {}).get("deadline_left_s"))
        self._said(trouble, way.well)
        if trouble is None:
            self.pause_s = FIRST_PAUSE_S
            return self._again_in(way.check_every_s)
        self._again_in(self.pause_s)
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

    def _again_in(self, pause_s: float) -> None:
        self.ask_at_s = lease.now_s() + pause_s

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

    def _note(self, **facts: Any) -> None:
        """Written only when something changed: the disk is the training's."""
        if any(self.notes.get(key, None) != value for key, value in facts.items()):
            self.notes.update(facts)
            self._write()

    def _write(self) -> None:
        try:
            files.write_json(os.path.join(self.places.guard, FileName.STATE), self.notes)
        except OSError as error:
            print("cannot write state.json: %s" % error.strerror, flush=True)  # a full disk must not stop the guard

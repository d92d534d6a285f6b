"""The nodes of one training, as their supervisors see each other: who is lost, who failed first, what the head does.

Each supervisor of another node keeps a connection to the head's, over which both say a line a second; a silence of
SILENT_S is a lost node, long before a collective times out. Only says what it sees; the supervisor acts. A line with
another id than this training's is not heard: the port faces the private network. Where ranks died, every node says so
and waits for the head, which alone decides: all start again, or none.

Example::

    nodes = Nodes(job)
    nodes.start()
    nodes.trouble()            # '' or 'node b (10.0.0.3) is lost: no word for 15 s; its last line: ...'
    nodes.farewell("finished", "")
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from typing import Callable, Mapping, Optional

from trainer import run_files

from ..contract.names import Outcome
from ..contract.requests import Cluster
from ..system import files, lease
from .jobs import Job
from .program import MEET_WITHIN_S

SAY_EVERY_S = 1.0
SILENT_S = 15.0
"""A node that says nothing for this long is lost: with the end of its ranks the others stop within 30 s."""
CAUSE_WITHIN_S = 17.0
AGREE_WITHIN_S = 40.0
"""Within that every node has ended its ranks after those of another died; else none starts again."""
LOST_GRACE_S = 3.0
"""After a node is lost the ranks wait in a collective and hear nothing; what the disk has stays whole."""
MOST_LINE_BYTES, MOST_TEXT_BYTES = 8192, 1500
GOOD = (run_files.OUTCOME_FINISHED, run_files.OUTCOME_STOPPED, Outcome.LIMIT, Outcome.PREEMPTED)
ASKED = (run_files.OUTCOME_STOPPED, Outcome.LIMIT, Outcome.PREEMPTED)
"""A node that ended so was asked to: the others end likewise, which they may not hear from their ranks."""
FOLLOWS = (("killed by SIGKILL", 0), ("lost another rank", 2))
"""What a death's words say of it: the lowest is the cause of the others."""
Clock = Callable[[], float]


class Watch:
    """What was heard of each other node, and what follows from it. No sockets: `hear` gets what came."""

    def __init__(self, cluster: Cluster, now_s: float, start: int = 1) -> None:
        self.cluster, self.node = cluster, cluster["node"]
        self.start = self.heads_start = start
        count = len(cluster["addresses"])
        self.others = [node for node in range(count) if node != self.node] if self.node == 0 else [0]
        self.due_s = {node: now_s + MEET_WITHIN_S for node in self.others}
        self.words = {node: "" for node in self.others}
        self.ended: dict[int, str] = {}
        self.died: dict[int, tuple[int, float, str]] = {}
        self.progress = 0
        self.lease_left_s = 0.0
        self.trouble = ""
        self.lost: set[int] = set()
        self.lost_as = ""
        self.wish = ("", "")

    def hear(self, said: Mapping[str, object], now_s: float) -> None:
        """One line of another node."""
        node = said.get("node")
        if said.get("id") != self.cluster["id"] or not isinstance(node, int) or node not in self.others:
            return
        self.due_s[node] = now_s + SILENT_S
        self.words[node] = str(said.get("words") or "")[:300] or self.words[node]
        start = int(str(said.get("start") or self.start))
        if node == 0:
            self.progress = int(str(said.get("progress") or 0))
            self.lease_left_s = float(str(said.get("lease_left_s") or 0))
            self.heads_start = max(self.heads_start, start)
            trouble = str(said.get("trouble") or "")[:1000] if start == self.start else ""
            self.trouble = trouble if said.get("ended") and trouble else self.trouble or trouble
        if said.get("died") and start == self.start:
            self.note_death(node, str(said["died"])[:500], now_s - float(str(said.get("ago_s") or 0)))
        outcome = said.get("ended")
        if outcome:
            self.ended[node] = str(outcome)
            reason = str(said.get("reason") or outcome)[:500]
            if outcome not in GOOD and not self.trouble:
                self.trouble = self._failed(node, reason)
            if outcome == Outcome.PREEMPTED:
                self.lost.add(node)
            if outcome in ASKED and not self.wish[0]:
                self.wish = (str(outcome), "%s: %s" % (self.name(node), reason))

    def note_death(self, node: int, reason: str, at_s: float) -> None:
        """The ranks of a node died, this one's too: for the others that is the trouble."""
        # However soon: a rank that the system killed lost no peer, and one that lost a peer is never the cause.
        follows = next((weight for words, weight in FOLLOWS if words in reason), 1)
        self.died.setdefault(node, (follows, at_s, reason))
        if node != self.node and not self.trouble:
            self.trouble = self._failed(node, reason)

    def first_cause(self) -> str:
        """Why ranks died, by the node where they did so first; empty where none died."""
        node = min(self.died, key=lambda each: self.died[each][:2], default=None)
        return "" if node is None else self._failed(node, self.died[node][2])

    def _failed(self, node: int, reason: str) -> str:
        return reason if reason.startswith("node ") else "%s failed: %s" % (self.name(node), reason)

    def begin(self, start: int) -> None:
        """A further start of all: what was said of the one before is over."""
        self.start = start
        self.died.clear()
        self.trouble = ""

    def look(self, now_s: float) -> str:
        """Why this node has to stop; empty where all is well. The first trouble stays."""
        for node in self.others:
            if node in self.ended or now_s <= self.due_s[node]:
                continue
            self.lost.add(node)
            if not self.lost_as:
                words = self.words[node]
                self.lost_as = "%s is lost: no word for %.0f s%s" % (
                    self.name(node),
                    SILENT_S if words else MEET_WITHIN_S,
                    "; its last line: %s" % words if words else ", and it never said one",
                )
        self.trouble = self.trouble or self.lost_as
        return self.trouble

    def all_ended(self) -> bool:
        """Whether the ranks of every other node that this one hears have ended."""
        return self.ended.keys() | self.died.keys() >= set(self.others)

    def name(self, node: int) -> str:
        """`node b (10.0.0.3)`."""
        return "node %s (%s)" % (self.cluster["names"][node], self.cluster["addresses"][node])

    def says(
        self, words: str, progress: int, ended: str, reason: str, *, lease_left_s: float = 0.0, now_s: float = 0.0
    ) -> bytes:
        """The line that this node says now."""
        _, died_at_s, died = self.died.get(self.node, (1, now_s, ""))
        line = {
            "id": self.cluster["id"], "node": self.node, "words": _short(words), "progress": progress,
            "lease_left_s": lease_left_s, "trouble": _short(self.trouble), "ended": ended, "reason": _short(reason),
            "start": self.start, "died": _short(died), "ago_s": now_s - died_at_s,
        }  # fmt: skip
        return _encoded(line) + b"\n"


def _short(text: str) -> str:
    """As much of it as MOST_TEXT_BYTES hold: a line that is cut is not heard."""
    text = text[:MOST_TEXT_BYTES]
    while len(_encoded(text)) > MOST_TEXT_BYTES:
        text = text[: len(text) * 3 // 4]
    return text


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


class Nodes:
    """The connections to the other nodes' supervisors, in a thread: a supervisor that stops its ranks goes on saying
    that it lives."""

    def __init__(self, job: Job, clock: Clock = time.monotonic) -> None:
        cluster = job.spec["cluster"]
        self.job, self.clock, self.watch = job, clock, Watch(cluster, clock(), max(1, job.starts()))
        self.address = (cluster["addresses"][0], cluster["port"] + 1)
        self.links: dict[socket.socket, bytes] = {}
        self.server: Optional[socket.socket] = None
        self.ended = ("", "")
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="nodes", daemon=True)

    def start(self) -> None:
        """Begins to speak and to listen. Where the head's port is taken, that is the trouble."""
        try:
            if self.watch.node == 0:
                self.server = socket.create_server(self.address, backlog=len(self.watch.others))
        except OSError as error:
            self.watch.trouble = "%s cannot listen at port %d: %s" % (self.watch.name(0), self.address[1], error)
        self.thread.start()

    def died(self, reason: str, rest: Callable[[], None]) -> str:
        """Tells the others that the ranks here died, and returns why, as far as any node knows: ranks only notice that
        a peer is gone. Waits for word of it."""
        watch, until_s = self.watch, self.clock() + CAUSE_WITHIN_S
        watch.note_death(watch.node, reason, self.clock())
        while not (watch.lost or watch.all_ended() or watch.heads_start > watch.start) and self.clock() < until_s:
            rest()
        cause = watch.lost_as or watch.first_cause()
        if watch.node == 0:
            watch.trouble = cause  # the word that counts
        return watch.trouble or cause

    def missing(self, rest: Callable[[], None]) -> str:
        """On the head: why not all nodes can start again; empty once each has ended its ranks, and waits."""
        watch, until_s = self.watch, self.clock() + AGREE_WITHIN_S
        while not watch.all_ended() and not watch.lost and self.clock() < until_s:
            rest()
        gone = [node for node in watch.others if node not in watch.died or node in watch.ended or node in watch.lost]
        return "%s does not wait for another start" % watch.name(gone[0]) if gone else ""

    def head_starts_again(self) -> bool | None:
        """On another node: whether the head starts all again; None while that is open."""
        if self.watch.heads_start > self.watch.start:
            return True
        return False if self.watch.lost or 0 in self.watch.ended else None

    def begin_again(self) -> None:
        """The ranks here have started again: as this node's are counted on the head, which the others follow."""
        self.watch.begin(self.job.starts() if self.watch.node == 0 else self.watch.heads_start)

    def trouble(self) -> str:
        """Why the training has to stop here: a lost node, or one that failed."""
        return self.watch.trouble

    def lost(self) -> list[int]:
        """The nodes that this one saw go: silent for too long, or taken away by their provider."""
        return sorted(self.watch.lost)

    def progress(self) -> int:
        """What the head has written so far: its growth is the progress of all."""
        return self.watch.progress

    def wish(self) -> tuple[str, str]:
        """The outcome and reason of a node that was asked to end; empty where none was."""
        return self.watch.wish

    def lease_left_s(self) -> float:
        """How long the head may go on without a caller: nobody renews the leases of the other nodes."""
        return self.watch.lease_left_s

    def farewell(self, outcome: str, reason: str) -> None:
        """Tells the others how it ended here, and hangs up."""
        self.ended = (outcome, reason)
        self.over.set()
        self.thread.join(3 * SAY_EVERY_S)
        for link in [*self.links, *([self.server] if self.server else [])]:
            link.close()

    def _run(self) -> None:
        last = False
        while not last:
            last = self.over.is_set()
            self._connect()
            self._say()
            if not last:
                self._listen(self.clock() + SAY_EVERY_S)
                self.watch.look(self.clock())

    def _connect(self) -> None:
        if self.server is None and not self.links:
            try:
                link = socket.create_connection(self.address, timeout=SAY_EVERY_S)
            except OSError:
                return
            self._add(link)

    def _add(self, link: socket.socket) -> None:
        link.setblocking(False)
        self.links[link] = b""

    def _say(self) -> None:
        words = files.tail(self.job.log, 400).decode(errors="replace").strip().splitlines()[-1:]
        progress = sum(map(files.size_bytes, self.job.followed_files().values()))
        left = lease.read(self.job.lease_folder)
        line = self.watch.says(
            words[0] if words else "it has started", progress, *self.ended,
            lease_left_s=left["left_s"] if left else 0.0, now_s=self.clock(),
        )  # fmt: skip
        for link in list(self.links):
            try:
                link.sendall(line)
            except OSError:
                self._drop(link)

    def _listen(self, until_s: float) -> None:
        while (left_s := until_s - self.clock()) > 0 and not self.over.is_set():
            sockets = [*self.links, *([self.server] if self.server else [])]
            if not sockets:
                self.over.wait(left_s)
                return
            for ready in select.select(sockets, [], [], left_s)[0]:
                if ready is self.server:
                    self._add(ready.accept()[0])
                else:
                    self._read(ready)

    def _read(self, link: socket.socket) -> None:
        try:
            came = link.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            came = b""
        if not came:
            return self._drop(link)
        *lines, rest = (self.links[link] + came).split(b"\n")
        self.links[link] = rest[:MOST_LINE_BYTES]
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                self.watch.hear(said, self.clock())

    def _drop(self, link: socket.socket) -> None:
        self.links.pop(link, None)
        link.close()


def of(job: Job) -> Nodes | None:
    """The other nodes of a training over several; None where it has one."""
    return Nodes(job) if job.is_train and job.spec.get("cluster") else None

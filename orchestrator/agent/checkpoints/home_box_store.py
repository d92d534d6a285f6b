"""A home box as a checkpoint store, on the machine that trains: the box calls, what is stored goes along its line.

A box at home is behind a router and cannot be called, so it calls here over SSH and offers a folder
(folder_service.py, keep.py). Its channel ends in `link` (store_link.py), which joins it with this process by a socket;
the requests that go through are HTTP's. The newest caller counts: an older line may be dead without knowing it.

Example::

    store = of(job, {"authorized": 'restrict,command="..." ssh-ed25519 AAAA... gptctl-store-RUN'})
    store.put("step-000617/model.safetensors", path, 652_000_000, sha256)
    assert store.look("step-000617/model.safetensors").sha256 == sha256
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from typing import Any, Sequence

from ..contract.requests import HomeAccess
from ..job.jobs import Job
from ..system import files, memory_files
from . import authorized_keys, object_requests
from .object_requests import Content, Missing, StoreTrouble, Tick, nothing

KIND = "line"
CALLED_WITHIN_S = 20.0
ANSWER_S = 120.0
"""A slow disk reads a large file again."""
_open: dict[str, HomeStore] = {}


def store_of(job: Job, home: HomeAccess) -> HomeStore:
    """The store of this job: one per process, since it holds the line."""
    if job.folder not in _open:
        _open[job.folder] = HomeStore(job.folder)
    authorized_keys.add(job.run, str(home["authorized"]))
    return _open[job.folder]


def address(job_folder: str) -> str:
    """Where callers are joined: a socket that only this user can reach. A job's folder may have too long a name."""
    return memory_files.path(KIND, job_folder)


class HomeStore:
    """One request at a time goes up the line; threads wait for each other."""

    def __init__(self, owner: str) -> None:
        self._line: socket.socket | None = None
        self._away_since_s = time.monotonic()
        self._called = threading.Condition()
        self._one = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        files.remove(address(owner))
        self._listener.bind(address(owner))
        os.chmod(address(owner), 0o600)
        self._listener.listen(4)
        threading.Thread(target=self._accept, daemon=True).start()

    def folder_for(self, name: str, taken: dict[str, str]) -> str | None:
        """Its own name: there is room for every checkpoint."""
        return name

    def missing(self, places: Sequence[str]) -> list[str]:
        """None: nothing has to be planned."""
        return []

    def put(self, place: str, path: str, size_bytes: int, sha256: str, tick: Tick = nothing) -> Content:
        """The first size_bytes of the file, from where an earlier try broke off; what was really sent. Raises
        StoreTrouble, and OSError for the file."""
        wanted = {"X-Sha256": sha256, "X-Size-Bytes": str(size_bytes)}
        have = self._ask("POST", place, headers=wanted).number("have_bytes")
        with open(path, "rb") as file:
            sent = object_requests.digest(file, size_bytes)
            if sent != sha256:  # the caller reports it: nothing damaged leaves
                return Content(size_bytes, sent)
            tick(have)
            file.seek(have)
            self._send(place, object_requests.Body(file, size_bytes - have, tick), have, size_bytes, sha256)
        return Content(size_bytes, sent)

    def put_bytes(self, place: str, content: bytes) -> Content:
        sent = object_requests.of_bytes(content)
        self._send(place, content, 0, sent.size_bytes, sent.sha256)
        return sent

    def settle(self, words: str) -> None:
        """Nothing: it is all there."""

    def look(self, place: str, tick: Tick = nothing) -> Content:
        """What the box's disk gives back."""
        answer = self._ask("GET", place)
        size_bytes = answer.number("size_bytes")
        tick(size_bytes)
        return Content(size_bytes, str(answer.json().get("sha256")))

    def remove(self, places: Sequence[str]) -> None:
        for place in places:
            self._ask("DELETE", place)

    def end(self, job: Job) -> None:
        """Nothing more will come: the box may hang up, and its key is let in no more. Where the answer is lost, its
        next call gets the same answer."""
        with contextlib.suppress(StoreTrouble):
            self._ask("POST", "end")
        authorized_keys.remove(job.run)
        files.remove(address(job.folder))

    def _send(self, place: str, body: Any, start: int, size_bytes: int, sha256: str) -> None:
        headers = {
            "X-Sha256": sha256,
            "X-Size-Bytes": str(size_bytes),
            "X-Offset": str(start),
            "Content-Length": str(size_bytes - start),
        }
        self._ask("PUT", place, body, headers)

    def _ask(self, method: str, place: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        with self._one:
            line = self._taken()
            connection = http.client.HTTPConnection("home")
            connection.sock, connection.auto_open = line, 0
            try:
                connection.request(method, "/" + place, body, headers or {})
                response = connection.getresponse()
                answer = Answer(response.status, response.read(object_requests.MOST_BYTES))
                if response.will_close:
                    self._drop(line)
            except (OSError, http.client.HTTPException) as error:
                self._drop(line)
                words = str(error) or type(error).__name__
                raise StoreTrouble("the line to the home box broke: %s" % words, passes=True) from None
        if answer.status == 404:
            raise Missing("the home box has no %s" % place)
        if answer.status != 200:
            raise StoreTrouble("the home box: %s" % answer.content.decode(errors="replace")[:300])
        return answer

    def _taken(self) -> socket.socket:
        """The line. One that broke just now is waited for; a box that has been away is not, by every thread again."""
        with self._called:
            ends = self._away_since_s + CALLED_WITHIN_S
            while self._line is None:
                if not self._called.wait(max(0.0, ends - time.monotonic())):
                    raise StoreTrouble(
                        "the home box does not call: check that it is on and reaches this machine by SSH", passes=True
                    )
            return self._line

    def _drop(self, line: socket.socket) -> None:
        with self._called:
            line.close()
            if self._line is line:
                self._line, self._away_since_s = None, time.monotonic()

    def _accept(self) -> None:
        while True:
            line, _ = self._listener.accept()
            line.settimeout(ANSWER_S)
            with self._called:
                old, self._line = self._line, line
                self._called.notify_all()
            if old is not None:
                with contextlib.suppress(OSError):
                    old.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on it
                old.close()


class Answer:
    """What came back."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status = status
        self.content = content

    def number(self, key: str) -> int:
        """A whole number of the answer. Raises StoreTrouble for anything else."""
        value = self.json().get(key)
        if not isinstance(value, int):
            raise StoreTrouble("the home box answers %r as %s" % (value, key))
        return value

    def json(self) -> dict[str, object]:
        """Raises StoreTrouble for anything but an object."""
        try:
            return dict(json.loads(self.content))
        except (ValueError, TypeError):
            raise StoreTrouble("the home box did not answer with a JSON object") from None

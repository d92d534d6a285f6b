"""The offload job: every kept checkpoint goes to the store while the training continues, without the laptop.

A checkpoint is marked SAFE when the store gave back its manifest and every file with the promised size and sha256, and
not before. The offload records trouble and tries again, less and less often, for as long as the machine lives. When the
training has ended and everything is there, the logs follow, and the job has finished.

The store is one behind URLs (url_store.py), a repository of the Hub (hub_store.py) or a home box (home_store.py).

Example, spec (the URLs or the token come as secrets, see store_urls.py)::

    {"store": "s3://bucket/prefix/RUN", "then": "end"}
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Callable, Iterable, Mapping

from trainer import run_files

from ..contract.answers import CheckpointEntry, ExitRecord
from ..contract.names import JobName, StoreState
from ..job import jobs
from ..job.jobs import Job
from ..system import files, long_logs
from ..system.pause import Pause
from . import manifest, object_requests, store_access, store_index
from .object_requests import StoreTrouble
from .store_access import StoreAccess
from .url_store import INDEX, PROBE, UrlStore, files_of

if TYPE_CHECKING:
    from .home_box_store import HomeStore
    from .hub_store import HubStore

LOOK_EVERY_S = 1.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
LOOK_AFTER_EVERY_S = 5.0
SAY_EVERY_S = 1.0
STREAMS = 3
LOGS = (run_files.METRICS, run_files.EVENTS, run_files.LOG)
Say = Callable[[Mapping[str, object]], None]


class NeedsUrls(Exception):
    """The URLs are missing or have expired: only the laptop can make new ones."""


def offload(job: Job, say: Say) -> dict[str, object]:
    """Returns when the training has ended and all that is kept is safe: `{"safe": [steps], "store": uri}`."""
    work = Offload(job, say)
    pause, looked_after_s = Pause(FIRST_PAUSE_S, LONGEST_PAUSE_S), time.monotonic()
    while True:
        changed = store_access.changed_at(job)
        try:
            if work.step():
                store_access.forget(job)
                return {"safe": sorted(work.index.checkpoints), "store": job.spec.get("store")}
            pause.reset()
            wait_s = LOOK_EVERY_S
        except NeedsUrls as needs:
            work.tell(StoreState.NEEDS_INPUT, str(needs))
            wait_s = LONGEST_PAUSE_S
        except (StoreTrouble, OSError) as error:
            if isinstance(error, StoreTrouble):
                work.tell(StoreState.TROUBLE, error.text, passes=error.passes)
            else:
                work.tell(StoreState.TROUBLE, str(error.strerror or error))
            wait_s = pause.next_s()
        ends = time.monotonic() + wait_s
        while time.monotonic() < ends and store_access.changed_at(job) == changed:
            time.sleep(min(0.2, wait_s))
        if time.monotonic() - looked_after_s > LOOK_AFTER_EVERY_S:
            looked_after_s = time.monotonic()
            _look_after(job)


class Offload:
    """What one process of the job knows: the index, what it said last, how many bytes moved."""

    def __init__(self, job: Job, say: Say) -> None:
        self.job = job
        self.say = say
        self.index = store_index.Index.load(job)
        self.known: dict[str, object] = {}
        self.problem: str | None = None
        self.probed = False
        self.lock = threading.Lock()
        self.bytes_done = self.bytes_total = 0
        self.said_at = 0.0
        self.store: UrlStore | HubStore | HomeStore = UrlStore({})

    def step(self) -> bool:
        """One look, and what it asks for. True when nothing is left to do, ever."""
        self.store = store_behind(self.job, self._urls())
        if not self.probed:
            self._probe()
        # Asked first: what the training wrote until its end was written by then.
        ended = self._ended()
        todo = self._todo()
        for entry in todo:
            self._store(entry)
            if ended is None and self._ended() is not None:
                return False
        if ended is None:
            self.tell(StoreState.WAITING)
            return False
        if not self._todo():
            self._finish(ended)
            return True
        return False

    def _urls(self) -> StoreAccess:
        found = store_access.read(self.job)
        if found is None:
            raise NeedsUrls("the URLs of the store are gone (a reboot): gptctl resume %s" % self.job.run)
        if store_access.left_s(found) <= 0:
            raise NeedsUrls("the URLs of the store have expired: gptctl resume %s" % self.job.run)
        return found

    def _probe(self) -> None:
        """Whether the store takes an object and gives back the same: before anything is trained."""
        sent = self.store.put_bytes(PROBE, ("gptctl %s\n" % self.job.run).encode())
        self.store.settle("probe")
        if self.store.look(PROBE) != sent:
            raise StoreTrouble("the store gave back other bytes than it was given")
        self.store.remove([PROBE])
        self.store.settle("probe")
        self.probed = True

    def _ended(self) -> ExitRecord | None:
        train = jobs.load(self.job.places, self.job.run, JobName.TRAIN)
        return train.exit_record() if train else None

    def _todo(self) -> list[CheckpointEntry]:
        """Kept checkpoints that are nowhere else yet: best, latest, then the newest."""
        found = [entry for entry in manifest.checkpoints(self.job.run_folder) if entry["kept"] and not self._has(entry)]
        return sorted(found, key=lambda entry: (not entry["best"], not entry["latest"], -entry["step"]))

    def _has(self, entry: CheckpointEntry) -> bool:
        """Mirrored to the laptop is safe too, but not in the store."""
        return entry["safe"] and entry["step"] in self.index.checkpoints

    def _store(self, entry: CheckpointEntry) -> None:
        """One checkpoint: its files, the manifest last, all of it read back; then the index, then SAFE."""
        folder = self.store.folder_for(entry["name"], self.index.folders)
        if folder is None:
            raise NeedsUrls("no URLs are left for %s, which was not planned" % entry["name"])
        self.index.save()
        missing = self.store.missing(files_of(folder, list(entry["files"])))
        if missing:
            raise NeedsUrls("no URL was made for %s" % ", ".join(sorted(map(os.path.basename, missing))))
        self.bytes_done, self.bytes_total = 0, 2 * sum(each["size_bytes"] for each in entry["files"].values())
        self.tell(StoreState.UPLOADING, self.problem, step=entry["step"])  # which lasts until this has gone well
        try:
            self._send_files(entry, folder)
        except FileNotFoundError:
            return  # retention took it, or made it weights only: the next look tells
        self.index.add(entry, folder)
        self.index.link(*self._links())
        self._send_logs_and_index()
        manifest.mark_safe(self.job.run_folder, entry["step"], entry["manifest_sha256"])
        self._prune()
        self.tell(StoreState.WAITING)

    def _send_files(self, entry: CheckpointEntry, folder: str) -> None:
        with ThreadPoolExecutor(STREAMS) as pool:
            _all(pool.submit(self._send_file, entry, name, folder) for name in entry["files"])
            self.store.settle(entry["name"])
            _all(pool.submit(self._same, *each) for each in self._promised(entry, folder))
        path = self._path(entry, run_files.MANIFEST_FILE)
        with open(path, "rb") as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != entry["manifest_sha256"]:
            raise FileNotFoundError(path)
        place = "%s/%s" % (folder, run_files.MANIFEST_FILE)
        sent = self.store.put_bytes(place, content)
        self.store.settle(entry["name"])
        self._same(place, sent)

    def _promised(self, entry: CheckpointEntry, folder: str) -> list[tuple[str, object_requests.Content]]:
        """Place and content of each file, as the manifest has it."""
        return [
            ("%s/%s" % (folder, name), object_requests.Content(each["size_bytes"], each["sha256"]))
            for name, each in entry["files"].items()
        ]

    def _send_file(self, entry: CheckpointEntry, name: str, folder: str) -> None:
        promised, place = entry["files"][name], "%s/%s" % (folder, name)
        wanted = object_requests.Content(promised["size_bytes"], promised["sha256"])
        if self._is_there(place, wanted):
            return
        sent = self.store.put(place, self._path(entry, name), wanted.size_bytes, wanted.sha256, self._count)
        if sent != wanted:
            raise StoreTrouble("%s of %s is damaged on this machine: it is not stored" % (name, entry["name"]))

    def _is_there(self, place: str, wanted: object_requests.Content) -> bool:
        """Only after a restart: what an earlier process of this job stored need not be sent again."""
        if self.job.starts() < 2:
            return False
        try:
            return self.store.look(place, self._count) == wanted
        except StoreTrouble:
            return False

    def _same(self, place: str, sent: object_requests.Content) -> None:
        found = self.store.look(place, self._count)
        if found != sent:
            raise StoreTrouble(
                "%s came back from the store with %d bytes, sha256 %s; sent were %d bytes, %s"
                % (os.path.basename(place), found.size_bytes, found.sha256[:12], sent.size_bytes, sent.sha256[:12])
            )

    def _path(self, entry: CheckpointEntry, name: str) -> str:
        return os.path.join(self.job.run_folder, run_files.CHECKPOINTS, entry["name"], name)

    def _links(self) -> tuple[int | None, int | None]:
        folder = self.job.run_folder
        return manifest.linked_step(folder, run_files.BEST), manifest.linked_step(folder, run_files.LATEST)

    def _send_logs_and_index(self) -> None:
        """As far as the logs are written: what happened until here must not go with the machine."""
        sent = {}
        for name in LOGS:
            path = os.path.join(self.job.run_folder, name)
            if name == run_files.LOG:
                path = long_logs.without_hole(path, self.job.file(name))
            if os.path.exists(path):
                with open(path, "rb") as file:
                    size = files.size_bytes(path)
                    wanted = object_requests.digest(file, size)
                sent[name] = self.store.put(name, path, size, wanted)
                self.index.files[name] = {"size_bytes": sent[name].size_bytes, "sha256": sent[name].sha256}
        self._send_index(sent)

    def _send_index(self, sent: dict[str, object_requests.Content]) -> None:
        """With what was sent beside it: all of it is read back."""
        self.index.save()
        sent = dict(sent, **{INDEX: self.store.put_bytes(INDEX, self.index.content())})
        self.store.settle("the index")
        for place, content in sent.items():
            self._same(place, content)

    def _prune(self) -> None:
        """What retention keeps no longer leaves the index first, then the store: the manifest before the files."""
        gone = self.index.let_go(self._links()[0], manifest.retention(self.job.run_folder))
        if not gone:
            return
        self._send_index({})
        for entry in gone:
            self.store.remove(files_of(entry["folder"], list(entry["files"])))
        self.store.settle("what is kept no longer")

    def _finish(self, ended: ExitRecord) -> None:
        self.index.link(*self._links())
        self.index.ended = ended
        self._send_logs_and_index()
        self.store.end(self.job)
        self.tell(StoreState.SAFE)

    def _count(self, size_bytes: int) -> None:
        with self.lock:
            self.bytes_done += size_bytes
            if time.monotonic() - self.said_at > SAY_EVERY_S:
                self.said_at = time.monotonic()
                self.say({"step": JobName.OFFLOAD, "bytes_done": self.bytes_done, "bytes_total": self.bytes_total})

    def tell(self, state: str, problem: str | None = None, **more: object) -> None:
        """Writes down what `status` shows, if it is news."""
        safe = sorted(self.index.checkpoints)
        self.problem = problem
        known = dict(more, state=state, problem=problem, safe=safe, probed=self.probed)
        if known != self.known:
            self.known = known
            files.write_json(self.job.file(store_index.STATE), known)
            self.say(dict(known, step=JobName.OFFLOAD))


def _all(started: Iterable[Future[None]]) -> None:
    """All at once; the first failure is raised, when the others have ended."""
    for each in list(started):
        each.result()


def store_behind(job: Job, secrets: StoreAccess) -> UrlStore | HubStore | HomeStore:
    """The store that these secrets open."""
    if "home" in secrets:
        from . import home_box_store

        return home_box_store.store_of(job, secrets["home"])
    if "hub" in secrets:
        from .hub_store import HubStore

        return HubStore(secrets["hub"])
    return UrlStore(secrets)


def _look_after(job: Job) -> None:
    """Its own supervisor, and the training's, if they were killed: no other process may be here to do it."""
    for each in (job, jobs.load(job.places, job.run, JobName.TRAIN)):
        if each is not None:
            jobs.revive_quietly(each)

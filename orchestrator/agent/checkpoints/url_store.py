"""A checkpoint store behind presigned URLs, as the offload job sees a store: what is put under a name is there at once.

Names are places in the run's folder of the store: `step-000617/model.safetensors`, `metrics.jsonl`, `probe`.

Example::

    store = UrlStore(urls)
    sent = store.put("step-000617/model.safetensors", path, 652_000_000, sha256, tick)
    assert store.look("step-000617/model.safetensors", tick) == sent
"""

from __future__ import annotations

import os
from typing import Sequence

from trainer import run_files

from ..contract.requests import Slot
from ..job.jobs import Job
from . import object_requests, store_access
from .object_requests import Content, Tick, nothing
from .store_access import StoreAccess

INDEX = "CHECKPOINTS.json"
PROBE = "probe"


class UrlStore:
    """See store_urls.py for what is in `urls`."""

    def __init__(self, urls: StoreAccess) -> None:
        self.urls = urls

    def folder_for(self, name: str, taken: dict[str, str]) -> str | None:
        """Where a checkpoint goes; None when no folder is left."""
        return store_access.folder_for(self.urls, name, taken)

    def missing(self, places: Sequence[str]) -> list[str]:
        """Those that cannot be stored: they have no URL."""
        return [place for place in places if self._slot(place) is None]

    def put(self, place: str, path: str, size_bytes: int, sha256: str, tick: Tick = nothing) -> Content:
        """The first size_bytes of the file; what was really sent. sha256: what it is expected to be."""
        return object_requests.put(self._slot(place) or {}, path, size_bytes, tick)

    def put_bytes(self, place: str, content: bytes) -> Content:
        return object_requests.put_bytes(self._slot(place) or {}, content)

    def settle(self, words: str) -> None:
        """Nothing: it is all there."""

    def look(self, place: str, tick: Tick = nothing) -> Content:
        """What the store gives back."""
        return object_requests.look((self._slot(place) or {})["get"], tick)

    def remove(self, places: Sequence[str]) -> None:
        """Takes them away, where a URL was made for that."""
        for place in places:
            url = (self._slot(place) or {}).get("delete")
            if url:
                object_requests.remove(url)

    def end(self, job: Job) -> None:
        """Nothing: no one waits for it."""

    def _slot(self, place: str) -> Slot | None:
        folder, name = os.path.split(place)
        if folder:
            return store_access.slots_of(self.urls, folder).get(name)
        if place in (INDEX, PROBE):
            return self.urls["index"] if place == INDEX else self.urls["probe"]
        return (self.urls.get("files") or {}).get(name) or None


def files_of(folder: str, names: Sequence[str]) -> list[str]:
    """Places of a checkpoint's files, the manifest first: without it the rest is not a checkpoint."""
    return ["%s/%s" % (folder, name) for name in (run_files.MANIFEST_FILE, *names)]

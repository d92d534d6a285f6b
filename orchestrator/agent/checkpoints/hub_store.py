"""A private repository of the Hugging Face Hub as a checkpoint store: large files as LFS objects, then a commit.

The Hub gives no URLs ahead, since it wants an object's sha256 first: so this machine has a token that may write to that
one repository. It came by stdin, is kept in memory, goes to the Hub alone and never along a redirect. The
huggingface_hub library cannot be counted on here, where only the standard library is; this is the part of its protocol
that a store needs: LFS batch, one commit of several files, resolve.

Example::

    store = HubStore({"endpoint": "https://huggingface.co", "repo": "me/runs", "token": "hf_...", "folder": "RUN"})
    store.put("step-000617/model.safetensors", path, 652_000_000, sha256); store.settle("step-000617")
"""

from __future__ import annotations

import base64
import json
import threading
import urllib.parse
from typing import Any, Dict, List, Sequence, TypedDict, cast

from ..contract.requests import HubAccess
from ..job.jobs import Job
from . import object_requests
from .object_requests import Content, StoreTrouble, Tick, nothing

BRANCH = "main"
LARGE_BYTES = 1 << 20
LARGE_NAMES = (".safetensors", ".pt")
"""What the Hub keeps as LFS objects by name; anything large is kept so, too."""
LFS = "application/vnd.git-lfs+json"


class _Action(TypedDict, total=False):
    href: str
    header: Dict[str, str]


class Actions(TypedDict, total=False):
    """Where an LFS object goes, and what confirms it."""

    upload: _Action
    verify: _Action


class _Object(TypedDict, total=False):
    error: Dict[str, object]
    actions: Actions


class HubStore:
    """What is put becomes visible by `settle`. Thread-safe but for that."""

    def __init__(self, hub: HubAccess) -> None:
        self.endpoint = str(hub["endpoint"]).rstrip("/")
        self.repo = str(hub["repo"])
        self.folder = str(hub["folder"]).strip("/")
        self._token = str(hub["token"])
        self._lock = threading.Lock()
        self._staged: dict[str, dict[str, object]] = {}

    def folder_for(self, name: str, taken: dict[str, str]) -> str | None:
        """Its own name: there is room for every checkpoint."""
        return name

    def missing(self, places: Sequence[str]) -> list[str]:
        """None: nothing has to be planned."""
        return []

    def put(self, place: str, path: str, size_bytes: int, sha256: str, tick: Tick = nothing) -> Content:
        """The first size_bytes of the file; what was really sent. sha256: what it is expected to be, which the Hub
        checks. Raises StoreTrouble, and OSError for the file."""
        if not _is_large(place, size_bytes):
            with open(path, "rb") as file:
                content = file.read(size_bytes)
            tick(len(content))
            return self.put_bytes(place, content)
        upload = self._batch(sha256, size_bytes)
        with open(path, "rb") as file:
            sent = self._send(upload, file, size_bytes, sha256, tick)
        if sent == sha256:
            self._stage(place, "lfsFile", algo="sha256", oid=sha256, size=size_bytes)
        return Content(size_bytes, sent)

    def put_bytes(self, place: str, content: bytes) -> Content:
        self._stage(place, "file", content=base64.b64encode(content).decode(), encoding="base64")
        return object_requests.of_bytes(content)

    def remove(self, places: Sequence[str]) -> None:
        """With the next commit. The Hub keeps objects of earlier commits until their owner removes them."""
        for place in places:
            self._stage(place, "deletedFile")

    def settle(self, words: str) -> None:
        """Commits what was put and removed since."""
        staged = dict(self._staged)
        if not staged:
            return
        lines: list[object] = [
            {"key": "header", "value": {"summary": "gptctl: %s of %s" % (words, self.folder), "description": ""}}
        ]
        lines += list(staged.values())
        body = "\n".join(json.dumps(line) for line in lines).encode()
        self._ask("/api/models/%s/commit/%s" % (self.repo, BRANCH), body, "application/x-ndjson")
        with self._lock:
            for place, line in staged.items():
                if self._staged.get(place) is line:
                    del self._staged[place]

    def end(self, job: Job) -> None:
        """Nothing: no one waits for it."""

    def look(self, place: str, tick: Tick = nothing) -> Content:
        """What the Hub gives back, by the redirect to its storage."""
        path = urllib.parse.quote("%s/%s" % (self.folder, place))
        url = "%s/%s/resolve/%s/%s" % (self.endpoint, self.repo, BRANCH, path)
        return object_requests.look(url, tick, self._headers())

    def _stage(self, place: str, key: str, **value: Any) -> None:
        with self._lock:
            self._staged[place] = {"key": key, "value": dict(value, path="%s/%s" % (self.folder, place))}

    def _batch(self, sha256: str, size_bytes: int) -> Actions | None:
        """Where the object goes; None when the Hub has it."""
        asked = {"operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
                 "objects": [{"oid": sha256, "size": size_bytes}], "ref": {"name": BRANCH}}  # fmt: skip
        said = self._ask("/%s.git/info/lfs/objects/batch" % self.repo, json.dumps(asked).encode(), LFS)
        objects = cast("List[_Object]", said.get("objects") or [{}])
        error = objects[0].get("error")
        if error:
            raise StoreTrouble("the Hub refuses the object: %s" % error.get("message"))
        return objects[0].get("actions") or None

    def _send(self, actions: Actions | None, file: Any, size_bytes: int, sha256: str, tick: Tick) -> str:
        """sha256 of what was sent; of what is here where the Hub has that already."""
        if actions is None:
            return object_requests.digest(file, size_bytes, tick)
        upload = actions["upload"]
        headers = dict(upload.get("header") or {})
        if "chunk_size" in headers:
            sent = _send_parts(upload["href"], headers, file, Content(size_bytes, sha256), tick)
        else:
            sent, _ = object_requests.send(upload["href"], file, size_bytes, tick, headers)
        if actions.get("verify") and sent == sha256:
            body = json.dumps({"oid": sha256, "size": size_bytes}).encode()
            there = urllib.parse.urlsplit(actions["verify"]["href"])
            self._ask(there.path + ("?" + there.query if there.query else ""), body, LFS)
        return sent

    def _headers(self) -> dict[str, str]:
        return {"Authorization": "Bearer " + self._token}

    def _ask(self, path: str, body: bytes, kind: str) -> dict[str, object]:
        """POST to the Hub itself; its JSON answer."""
        headers = dict(self._headers(), Accept=LFS if kind == LFS else "application/json")
        headers["Content-Type"] = kind
        with object_requests.ask(self.endpoint + path, "POST", body, len(body), headers=headers) as answer:
            said = answer.read(object_requests.MOST_BYTES)
        try:
            value = json.loads(said or b"{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise StoreTrouble("the Hub did not answer with a JSON object")
        return value


def _send_parts(href: str, urls: dict[str, str], file: Any, wanted: Content, tick: Tick) -> str:
    """A very large object: `urls` has the address of each part by its number, and their size; `href` joins them."""
    part_bytes = int(urls["chunk_size"])
    sent = object_requests.digest(file, wanted.size_bytes)
    parts = []
    for number, url in sorted((int(name), url) for name, url in urls.items() if name.isdigit()):
        start = (number - 1) * part_bytes
        file.seek(start)
        _, tag = object_requests.send(url, file, min(part_bytes, wanted.size_bytes - start), tick)
        parts.append({"partNumber": number, "etag": tag})
    body = json.dumps({"oid": wanted.sha256, "parts": parts}).encode()
    with object_requests.ask(href, "POST", body, len(body), headers={"Accept": LFS, "Content-Type": LFS}) as answer:
        answer.read(object_requests.BLOCK_BYTES)
    return sent


def _is_large(place: str, size_bytes: int) -> bool:
    return size_bytes >= LARGE_BYTES or place.endswith(LARGE_NAMES)

"""Two real HTTP servers on loopback: one that serves files by byte ranges and misbehaves when told to, and one shaped
like the Hugging Face Hub in front of it.

    with FileServer({"/train.bin": content}) as server:
        server.faults.cut_after = 1 << 20                 # every answer ends after a MiB
        ... server.url("/train.bin"), server.sent_bytes, server.asked

    with Hub() as hub:
        hub.publish("me/tokens", {"train.safetensors": content}, token="hf_x")      # private, for that token
        os.environ["HF_ENDPOINT"] = hub.endpoint
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

Content = bytes | Path
CHUNK_BYTES = 1 << 16
SHOWN_AS_LFS_BYTES = 1024
"""Larger ones are kept as LFS objects, with their sha256 in the listing, as the Hub does with binary files."""


@dataclass
class Faults:
    """What the server does wrong; change it at any time."""

    cut_after: int | None = None
    """Ends every answer after so many bytes."""
    pause_s: float = 0.0
    """Before every 64 KiB."""
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Statuses, with headers, to answer the next GETs with."""
    expired: bool = False
    """Every signed URL answers 403, until it is False again or the URL's signature is a new one."""
    ignores_ranges: bool = False
    flips: dict[str, int] = field(default_factory=dict)
    """Path -> offset of a byte that arrives wrong."""
    flip_times: int = 10**9
    """How often it does."""
    cuts_off: dict[str, int] = field(default_factory=dict)
    """Path -> bytes by which the file is shorter (longer: negative) than HEAD announces."""


class FileServer:
    """Serves bytes or files by path. `sent_bytes` counts bodies of GET; `asked` lists (method, path, headers)."""

    def __init__(self, files: Mapping[str, Content] | None = None, host: str = "127.0.0.1") -> None:
        self.files: dict[str, Content] = dict(files or {})
        self.faults = Faults()
        self.sent_bytes = 0
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self.server = http.server.ThreadingHTTPServer((host, 0), type("Bound", (FileHandler,), {"owner": self}))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://{self.server.server_address[0]!s}:{self.server.server_port}"

    def url(self, path: str) -> str:
        return self.endpoint + path

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def size(self, path: str) -> int:
        content = self.files[path]
        return content.stat().st_size if isinstance(content, Path) else len(content)

    def cut(self, path: str, first: int, last: int) -> bytes:
        """Bytes first .. last of a file."""
        content = self.files[path]
        if isinstance(content, bytes):
            return content[first : last + 1]
        with content.open("rb") as file:
            file.seek(first)
            return file.read(last + 1 - first)


class FileHandler(http.server.BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"
    wbufsize = CHUNK_BYTES

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        owner, path = self.owner, unquote(urlsplit(self.path).path)
        with owner.lock:
            owner.asked.append((self.command, self.path, dict(self.headers)))
            refusal = owner.faults.refusals.pop(0) if body and owner.faults.refusals else None
        if refusal:
            return self.refuse(*refusal)
        if owner.faults.expired and "signature=old" in self.path:
            return self.refuse(403, {})
        if path not in owner.files:
            return self.refuse(404, {})
        self._answer(path, body)

    def _answer(self, path: str, body: bool) -> None:
        size = self.owner.size(path)
        if body:
            size -= self.owner.faults.cuts_off.get(path, 0)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.owner.faults.ignores_ranges:
            first, last, status = 0, size - 1, 200
        else:
            first, last, status = int(asked[1]), min(int(asked[2] or size - 1), size - 1), 206
            if first >= size:
                return self.refuse(416, {"Content-Range": f"bytes */{size}"})
        self.send_response(status)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.md5(path.encode()).hexdigest()}-{size}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            self._send(path, first, last)

    def _send(self, path: str, first: int, last: int) -> None:
        faults = self.owner.faults
        sent = 0
        for start in range(first, last + 1, CHUNK_BYTES):
            chunk = self.owner.cut(path, start, min(start + CHUNK_BYTES - 1, last)).ljust(
                min(CHUNK_BYTES, last + 1 - start), b"+"
            )
            chunk = self._flipped(path, start, chunk)
            if faults.cut_after is not None:
                chunk = chunk[: max(0, faults.cut_after - sent)]
            try:
                self.wfile.write(chunk)
            except OSError:
                chunk = b""
            sent += len(chunk)
            with self.owner.lock:
                self.owner.sent_bytes += len(chunk)
            if len(chunk) == 0 or (faults.cut_after is not None and sent >= faults.cut_after):
                self.close_connection = True
                return
            if faults.pause_s:
                time.sleep(faults.pause_s)

    def _flipped(self, path: str, start: int, chunk: bytes) -> bytes:
        at = self.owner.faults.flips.get(path, -1) - start
        with self.owner.lock:
            if not 0 <= at < len(chunk) or self.owner.faults.flip_times <= 0:
                return chunk
            self.owner.faults.flip_times -= 1
        return chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]

    def refuse(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silent."""


@dataclass(frozen=True)
class Repository:
    """What the Hub holds under one name."""

    files: Mapping[str, Content]
    token: str | None = None
    gated: bool = False
    commit: str = ""


class Hub(FileServer):
    """The Hub's API for reading, with its files on another server, `storage`, to which resolve URLs redirect."""

    PAGE = 2

    def __init__(self) -> None:
        super().__init__()
        self.server.RequestHandlerClass = type("BoundHub", (HubHandler,), {"owner": self})
        self.storage = FileServer(host="127.0.0.2")
        self.repositories: dict[str, Repository] = {}

    def __enter__(self) -> Self:
        self.storage.__enter__()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.storage.__exit__()

    def publish(
        self,
        name: str,
        files: Mapping[str, Content],
        *,
        token: str | None = None,
        gated: bool = False,
        kind: str = "datasets",
    ) -> str:
        """A new commit with these files; returns it. With a token the repository is private to that token."""
        commit = hashlib.sha1(f"{name}{sorted(files)}{time.monotonic_ns()}".encode()).hexdigest()
        self.repositories[f"{kind}/{name}"] = Repository(dict(files), token, gated, commit)
        for path, content in files.items():
            self.storage.files[f"/{kind}/{name}/{commit}/{path}"] = content
        return commit


class HubHandler(FileHandler):
    owner: Hub

    def _serve(self, body: bool) -> None:
        owner = self.owner
        with owner.lock:
            owner.asked.append((self.command, self.path, dict(self.headers)))
            refusal = owner.faults.refusals.pop(0) if owner.faults.refusals else None
        if refusal:
            return self.refuse(*refusal)
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if found is None:
            return self.refuse(404, {})
        name = f"{found[1] or 'models'}/{found[2]}"
        repository = owner.repositories.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository is None or (repository.token and repository.token != token):
            return self.refuse(404 if token else 401, {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return self.refuse(403, {"X-Error-Code": "GatedRepo"})
        revision = api[4] if api else found[3]
        if revision not in ("main", repository.commit):
            return self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        if api:
            return self._api(name, repository, api[3])
        self._resolve(name, repository, found[4])

    def _api(self, name: str, repository: Repository, what: str) -> None:
        if what == "revision":
            return self.json({"id": name.partition("/")[2], "sha": repository.commit})
        page = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        names = sorted(repository.files)
        entries = [self._entry(each, repository.files[each]) for each in names[page : page + Hub.PAGE]]
        more = {}
        if page + Hub.PAGE < len(names):
            address = f"{self.owner.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={page + Hub.PAGE}"
            more = {"Link": f'<{address}>; rel="next"'}
        self.json([{"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder"}, *entries], more)

    def _entry(self, path: str, content: Content) -> dict[str, Any]:
        data = content if isinstance(content, bytes) else content.read_bytes()
        entry: dict[str, Any] = {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
        if len(data) > SHOWN_AS_LFS_BYTES:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _resolve(self, name: str, repository: Repository, path: str) -> None:
        if path not in repository.files:
            return self.refuse(404, {"X-Error-Code": "EntryNotFound"})
        place = f"/{name}/{repository.commit}/{path}"
        digest = hashlib.sha256(place.encode()).hexdigest()
        headers = {
            "Location": f"{self.owner.storage.url(place)}?X-Amz-Signature={digest[:16]}",
            "X-Repo-Commit": repository.commit,
            "X-Linked-Size": str(self.owner.storage.size(place)),
            "X-Linked-ETag": f'"{digest}"',
        }
        self.refuse(302, headers)

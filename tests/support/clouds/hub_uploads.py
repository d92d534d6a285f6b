"""A Hub on loopback that takes models: repositories, branches, LFS objects, commits, as huggingface_hub asks for them.

It refuses what the Hub refuses (a wrong token, an object whose sha256 is another one, a commit on another parent, front
matter that is no YAML) and answers with 429 or 5xx when a test wants that. Files are read by resolve, large ones by a
redirect to a signed address. Reading datasets is tests/support/clouds/file_server.py.

    with UploadHub() as hub:
        hub.fail("commit", 503, times=2)
        ...
        hub.repos["me/model"].files("main")["model.safetensors"]
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_canarycanarycanarycanarycanary0001"
READ_TOKEN = "hf_readonlyreadonlyreadonlyreadonly01"
STORE_TOKEN = "hf_storestorestorestorestorestore0001"
"""Fine-grained; `UploadHub.granted` says what it may write to."""
FIRST_COMMIT = "0" * 40
LARGE_BYTES = 1 << 20
LARGE_NAMES = (".safetensors", ".pt", ".png")


@dataclass
class Repository:
    """Branches are lists of commits; a commit is its id and all files, path to content."""

    private: bool
    branches: dict[str, list[tuple[str, dict[str, bytes]]]] = field(
        default_factory=lambda: {"main": [(FIRST_COMMIT, {})]}
    )

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.branches[branch][-1][1]

    def head(self, branch: str = "main") -> str:
        return self.branches[branch][-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """By branch or commit."""
        if revision in self.branches:
            return self.branches[revision][-1]
        every = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in every if commit[0] == revision), None)


@dataclass
class Fault:
    what: str
    status: int
    times: int
    headers: dict[str, str]
    after: bool
    """The request has its effect, and only the answer is lost."""


class UploadHub:
    """A server with its own thread; `asked` has (method, path, Authorization) of every request."""

    def __init__(self) -> None:
        self.repos: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.faults: list[Fault] = []
        self.granted = ["me/runs"]
        self.part_bytes: int | None = None
        """Larger objects are taken in parts of this size."""
        self.lies: set[str] = set()
        """Ends of paths whose bytes come back changed."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> UploadHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, what: str, status: int, times: int = 1, *, after: bool = False, **headers: str) -> None:
        """The next requests whose path has `what` in it get this status."""
        self.faults.append(
            Fault(what, status, times, {name.replace("_", "-"): value for name, value in headers.items()}, after)
        )

    def fault_for(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.what in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, part: str) -> int:
        return sum(asked[0] == method and part in asked[1] for asked in self.asked)


class Handler(BaseHTTPRequestHandler):
    hub: ClassVar[UploadHub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.handle_any()

    do_POST = do_PUT = do_GET

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.chunks()
        path, hub = urlsplit(self.path).path, self.hub
        hub.asked.append((self.command, path, self.headers.get("Authorization")))
        fault = hub.fault_for(path)
        if fault is not None and not fault.after:
            return self.answer(fault.status, {"error": "busy"}, **fault.headers)
        with hub.lock:
            status, value = self.act(path, body)
        if fault is not None:
            return self.answer(fault.status, {"error": "busy"}, **fault.headers)
        self.answer(status, value)

    def chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def answer(self, status: int, value: object, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and isinstance(value, bytes):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        if isinstance(value, dict) and "Location" in value:
            headers["Location"] = value["Location"]
        if isinstance(value, dict) and "code" in value:
            headers |= {"X-Error-Code": value["code"], "X-Error-Message": value["error"]}
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def act(self, path: str, body: bytes) -> tuple[int, Any]:  # noqa: PLR0911 - one per kind of address
        if path.startswith("/objects/"):  # a presigned address: no token
            return self.stored(path.rsplit("/", 1)[1], parse_qs(urlsplit(self.path).query), body)
        if path == "/api/validate-yaml":
            return self.validated(json.loads(body)["content"])
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_TOKEN, STORE_TOKEN):
            return 401, {"error": "Invalid credentials in Authorization header"}
        if token == READ_TOKEN and self.command != "GET":
            return 403, {"error": 'You don\'t have the rights to create a model under the namespace "me"'}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "auth": {"accessToken": self.described(token)}}
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolved(match[1], unquote(match[2]), unquote(match[3]))
        if path == "/api/repos/create":
            return self.created(json.loads(body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", path):
            return self.large(match[1], match[2], json.loads(body))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|branch)/([^/]+))?", path)
        if match is None:
            return 404, {"error": f"no such address: {path}"}
        repo = self.hub.repos.get(match[1])
        if token == STORE_TOKEN and self.command != "GET" and match[1] not in self.hub.granted:
            return 403, {"error": "this token may not write to that repository"}
        if repo is None:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        return self.of_repository(match[1], repo, match[2] or "revision", unquote(match[3] or "main"), body)

    def stored(self, oid: str, asked: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        """What a signed address does: gives an object, takes one whole, or in parts that are then joined."""
        hub = self.hub
        if "signature" not in asked or self.headers.get("Authorization"):
            return 403, {"error": "SignatureDoesNotMatch"}
        if self.command == "GET":
            content = hub.objects[oid]
            lies = any(end in asked.get("path", [""])[0] for end in hub.lies)
            return 200, bytes([content[0] ^ 1]) + content[1:] if lies else content
        if "part" in asked:
            hub.parts.setdefault(oid, {})[int(asked["part"][0])] = body
            return 200, {}
        if self.command == "POST":
            said = [each["partNumber"] for each in json.loads(body)["parts"]]
            body = b"".join(hub.parts[oid][number] for number in said)
        if hashlib.sha256(body).hexdigest() != oid:
            return 403, {"error": "SignatureDoesNotMatch"}
        hub.objects[oid] = body
        return 200, {}

    def described(self, token: str) -> dict[str, Any]:
        if token != STORE_TOKEN:
            return {"role": "write" if token == TOKEN else "read"}
        scoped = [
            {"entity": {"type": "model", "name": name}, "permissions": ["repo.content.read", "repo.write"]}
            for name in self.hub.granted
        ]
        return {"role": "fineGrained", "fineGrained": {"global": [], "scoped": scoped}}

    def resolved(self, name: str, revision: str, path: str) -> tuple[int, Any]:
        repo = self.hub.repos.get(name)
        found = repo.at(revision) if repo else None
        if found is None or path not in found[1]:
            return 404, {"error": "Entry not found", "code": "EntryNotFound"}
        content = found[1][path]
        if not is_large(path, len(content)):
            return 200, content
        oid = hashlib.sha256(content).hexdigest()
        return 302, {"Location": f"{self.hub.endpoint}/objects/{oid}?signature=secret&path={path}"}

    def validated(self, content: str) -> tuple[int, Any]:
        try:
            front = yaml.safe_load(content.split("---\n")[1])
            fault = None if isinstance(front["license"], str) else "license must be a string"
        except (IndexError, KeyError, TypeError, yaml.YAMLError) as error:
            fault = str(error)
        return (
            (400, {"errors": [{"message": fault}], "warnings": []}) if fault else (200, {"errors": [], "warnings": []})
        )

    def created(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo"}
        self.hub.repos[name] = Repository(wanted.get("private") is True or wanted.get("visibility") == "private")
        return 200, {"url": f"{self.hub.endpoint}/{name}"}

    def large(self, name: str, what: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if what == "verify":
            kept = self.hub.objects.get(asked["oid"])
            return (200, {}) if kept is not None and len(kept) == asked["size"] else (404, {"error": "not here"})
        return 200, {"transfer": "basic", "objects": [self.place(name, each) for each in asked["objects"]]}

    def place(self, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.objects:
            return wanted
        href, header, size = f"{self.hub.endpoint}/objects/{wanted['oid']}?signature=secret", {}, self.hub.part_bytes
        if size and wanted["size"] > size:
            numbers = range(1, -(-wanted["size"] // size) + 1)
            header = {"chunk_size": str(size), **{f"{number:05d}": f"{href}&part={number}" for number in numbers}}
        actions = {
            "upload": {"href": href, "header": header},
            "verify": {"href": f"{self.hub.endpoint}/{name}.git/info/lfs/objects/verify", "header": {}},
        }
        return {**wanted, "actions": actions}

    def of_repository(self, name: str, repo: Repository, what: str, revision: str, body: bytes) -> tuple[int, Any]:  # noqa: PLR0911
        if what == "branch":
            if revision in repo.branches:
                return 409, {"error": "Reference already exists"}
            repo.branches[revision] = [repo.branches["main"][-1]]
            return 200, {}
        found = repo.at(revision)
        if found is None:
            return 404, {"error": f"Invalid rev id: {revision}", "code": "RevisionNotFound"}
        commit, files = found
        if what == "revision":
            return 200, {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repo.private,
                "siblings": [],
                "tags": [],
            }
        if what == "tree":
            return 200, [entry(path, content) for path, content in sorted(files.items())]
        if what == "preupload":
            return 200, {"files": [mode(each, files) for each in json.loads(body)["files"]]}
        return self.committed(name, repo, revision, [json.loads(line) for line in body.splitlines()])

    def committed(self, name: str, repo: Repository, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.head(branch)):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files = dict(repo.files(branch))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile" and value["oid"] not in self.hub.objects:
                return 400, {"error": f"LFS pointer to a missing object: {value['path']}"}
            if line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return 400, {"error": f"no such file: {value['path']}"}
                continue
            large = line["key"] == "lfsFile"
            if not large and is_large(value["path"], len(base64.b64decode(value["content"]))):
                return 400, {"error": f"{value['path']} has to be an LFS object"}
            files[value["path"]] = self.hub.objects[value["oid"]] if large else base64.b64decode(value["content"])
        commit = hashlib.sha1(json.dumps([header, sorted(files)]).encode() + repo.head(branch).encode()).hexdigest()
        repo.branches[branch].append((commit, files))
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        return 200, {"commitUrl": url, "commitOid": commit, "pullRequestUrl": None}


def is_large(path: str, size_bytes: int) -> bool:
    return path.endswith(LARGE_NAMES) or size_bytes > LARGE_BYTES


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_large(path, len(content)):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


def mode(asked: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    path = asked["path"]
    known = blob_id(files[path]) if path in files else None
    large = is_large(path, asked["size"])
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": known}

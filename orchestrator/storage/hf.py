"""Files of the Hugging Face Hub, at one commit, by byte ranges of their resolve URLs.

    hf://OWNER/NAME[@REVISION][/FOLDER or FILE or PATTERN]         a dataset; hf://models/OWNER/NAME... a model

Three GET requests of the Hub's API are all that is needed here (the commit, the tree page by page, some bytes), so
this is httpx through remote/web/range_reads.py: the huggingface_hub library would bring ten more packages into every
installation, and its downloads end on the laptop. HF_ENDPOINT is honoured; the token comes from HF_TOKEN or the file
that `hf auth login` writes, and goes only to the Hub itself, never along a redirect.

Example: `storage().manifest("hf://gpjt/fineweb-gpt2-tokens")` -> [StoredFile("train.safetensors", ..., sha256), ...]
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from orchestrator.core import typed_json
from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.ports import Part, Storage, StoredFile, Upload
from orchestrator.core.safe_names import WILD, checked, matching
from orchestrator.remote.web.http_client import Response, origin
from orchestrator.remote.web.hugging_face import PUBLIC, endpoint
from orchestrator.remote.web.range_reads import fetch

FORM = re.compile(r"hf://((?:datasets|models)/)?([\w.-]+/[\w.-]+)(?:@([\w./%+-]+?))?(?:/(.*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
NEXT_PAGE = re.compile(r'<([^>]+)>;\s*rel="next"')
MOST_PAGES = 1000
TOKENS = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Place:
    """A URI taken apart: `kind` is datasets or models; `path` may be empty."""

    kind: str
    repo: str
    revision: str
    path: str

    def uri(self, commit: str, path: str) -> str:
        return f"hf://{self.kind}/{self.repo}@{commit}/{path}"


@dataclass(frozen=True)
class HubStorage:
    """One Hub. Keeps the token out of every message."""

    endpoint: str = PUBLIC
    token: str | None = field(default=None, repr=False)
    token_source: str = ""
    scheme = "hf"

    def manifest(self, uri: str) -> Sequence[StoredFile]:
        place = parse(uri)
        commit = self.commit(place)
        files = self._tree(place, commit)
        if not place.path:
            return files
        exact = [each for each in files if each.name == place.path]
        if exact:
            return exact
        if WILD.search(place.path):
            return matching(files, place.path, uri)
        below = [each for each in files if each.name.startswith(place.path + "/")]
        if not below:
            some = ", ".join(each.name for each in files[:5]) or "nothing"
            raise StorageError(f"{uri}: no such file or folder; the repository has: {some}", missing=True)
        return [_below(each, place.path) for each in below]

    def read(self, uri: str, start: int, size_bytes: int) -> bytes:
        place = parse(uri)
        answer = self._ask(place, self._resolve(place), first=start, size_bytes=size_bytes)
        if answer.status == 416:
            return b""
        if answer.status != 206 and start > 0:
            raise StorageError(f"{uri}: the server ignores byte ranges", "try again later")
        return answer.content

    def download_plan(
        self, uri: str, destination: str, start: int = 0, size_bytes: int | None = None, expires_s: float = 0.0
    ) -> Part:
        place = parse(uri)
        if size_bytes is None:
            size_bytes = self.manifest(uri)[0].size_bytes - start
        return Part(self._resolve(place), start, size_bytes, destination, headers=self._headers())

    def upload_plan(self, uri: str, files: Sequence[StoredFile], expires_s: float = 0.0) -> Sequence[Upload]:
        raise UserError(
            f"{uri}: a machine cannot store on the Hub with a URL alone",
            "name it as checkpoint_store, or use s3://; gptctl export --push uploads a finished model",
        )

    def grants_end_at(self) -> float | None:
        return None

    def commit(self, place: Place) -> str:
        """The commit that the revision stands for now."""
        if COMMIT.fullmatch(place.revision):
            return place.revision
        url = f"{self.endpoint}/api/{place.kind}/{place.repo}/revision/{quote(place.revision, safe='')}"
        answer = self._json(place, self._ask(place, url))
        found = str(answer.get("sha", "")) if isinstance(answer, dict) else ""
        if not COMMIT.fullmatch(found):
            raise StorageError(f"hf://{place.repo}: the Hub names no commit for {place.revision}", "try again later")
        return found

    def _tree(self, place: Place, commit: str) -> list[StoredFile]:
        """Every file of the repository at the commit, over all pages."""
        url: str = f"{self.endpoint}/api/{place.kind}/{place.repo}/tree/{commit}?recursive=true"
        found: list[StoredFile] = []
        for _ in range(MOST_PAGES):
            answer = self._ask(place, url)
            found += _stored_files(place, commit, self._json(place, answer))
            more = NEXT_PAGE.search(answer.headers.get("link", ""))
            if more is None:
                return sorted(found, key=lambda each: each.name)
            url = urljoin(url, more[1])
            if origin(url) != origin(self.endpoint):
                raise StorageError(f"hf://{place.repo}: its listing continues at another server", "do not use it")
        raise StorageError(f"hf://{place.repo}: its listing does not end", "name a folder or a file of it")

    def _resolve(self, place: Place) -> str:
        kind = "datasets/" if place.kind == "datasets" else ""
        return f"{self.endpoint}/{kind}{place.repo}/resolve/{quote(place.revision, safe='')}/{quote(place.path)}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _ask(self, place: Place, url: str, first: int | None = None, size_bytes: int = 16 << 20) -> Response:
        answer = fetch(url, headers=self._headers(), first=first, size_bytes=size_bytes)
        if answer.status in (200, 206, 416):
            return answer
        code = answer.headers.get("x-error-code", "")
        what = f"hf://{place.repo}" + (f"/{place.path}" if place.path else "")
        if answer.status == 404 and code in ("EntryNotFound", "RevisionNotFound"):
            which = f"revision {place.revision}" if code == "RevisionNotFound" else "such file"
            raise StorageError(f"{what}: the Hub has no {which}", "look at its page on the Hub", missing=True)
        if answer.status in (401, 403, 404):
            raise StorageError(
                self._refusal(what, answer.status, code), self._help(place, code), missing=not self.token
            )
        raise StorageError(f"{what}: the Hub answers {answer.status} {code}".rstrip(), "try again later")

    def _refusal(self, what: str, status: int, code: str) -> str:
        """The Hub answers 401 without and 404 with a token that may not see a repository, whether it exists or not."""
        if code == "GatedRepo":
            return f"{what} is gated: its owner lets in who asked ({status})"
        if self.token:
            return f"{what} does not exist, or the token of {self.token_source} may not read it ({status})"
        return f"{what} does not exist, or is private and you have set no token ({status})"

    def _help(self, place: Place, code: str) -> str:
        if code == "GatedRepo":
            return f"ask for access at {self.endpoint}/{place.kind}/{place.repo} with the account of the token"
        want = f"a token with read access to {place.repo}"
        return f"check the spelling; for a private one set HF_TOKEN to {want} ({TOKENS})"

    def _json(self, place: Place, answer: Response) -> Any:
        try:
            return typed_json.parse(answer.content)
        except ValueError as error:
            raise StorageError(f"hf://{place.repo}: {self.endpoint} answers no JSON", "check HF_ENDPOINT") from error


def storage() -> Storage:
    """HF_ENDPOINT, HF_TOKEN and the token file from the environment."""
    token, source = find_token(os.environ)
    return HubStorage(endpoint(), token, source)


def find_token(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """The token and where it was found: HF_TOKEN, else the file of the Hub's own command line,
    else the token with which machines store checkpoints."""
    token = environment.get("HF_TOKEN", "").strip()
    if token:
        return token, "HF_TOKEN"
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    path = Path(environment.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()
    with suppress(OSError):
        if token := path.read_text().strip():
            return token, str(path)
    token = environment.get("HF_STORE_TOKEN", "").strip()  # better than none, for what a machine stored with it
    return token or None, "HF_STORE_TOKEN" if token else ""


def parse(uri: str) -> Place:
    """Raises UserError for anything but an hf:// URI."""
    found = FORM.fullmatch(uri)
    if not found:
        raise UserError(f"{uri} is not a Hub address", "write it as hf://OWNER/NAME, or hf://OWNER/NAME@REVISION/FILE")
    kind, repo, revision, path = found.groups()
    path = (path or "").strip("/")
    return Place((kind or "datasets").rstrip("/"), repo, revision or "main", checked(path, uri) if path else "")


def _stored_files(place: Place, commit: str, page: Any) -> list[StoredFile]:
    """The files of one page of a listing. A file that cannot be read is an error: data would be missing. Raises
    StorageError, UserError."""
    try:
        return [_stored(place, commit, HubFile.from_json(entry)) for entry in page if entry["type"] == "file"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"hf://{place.repo}: its listing does not fit the Hub's document: {error!r}"
        raise StorageError(what, "check HF_ENDPOINT, or try again later") from error


@dataclass(frozen=True)
class HubFile:
    """One file in a listing of the Hub; `sha256` of what it keeps as an LFS object."""

    path: str
    size_bytes: int
    sha256: str | None

    @classmethod
    def from_json(cls, entry: Any) -> HubFile:
        """Raises KeyError, TypeError, ValueError, AttributeError."""
        large = entry.get("lfs") or {}
        sha256 = large.get("oid")
        size_bytes = int(large.get("size", entry.get("size", 0)))
        return cls(str(entry["path"]), size_bytes, None if sha256 is None else str(sha256))


def _stored(place: Place, commit: str, file: HubFile) -> StoredFile:
    name = checked(file.path, f"hf://{place.repo}")
    return StoredFile(name, file.size_bytes, file.sha256, place.uri(commit, name), commit)


def _below(file: StoredFile, folder: str) -> StoredFile:
    return StoredFile(file.name.removeprefix(folder + "/"), file.size_bytes, file.sha256, file.uri, file.version)

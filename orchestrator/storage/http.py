"""Files behind http:// and https://, by HEAD and byte ranges. Needs no credential and sends none.

A URL of a file is that file. A URL of a folder must hold a dataset.json (`gptctl data prepare` writes one), because
HTTP lists no folders: it names the files with their sizes and digests. Servers that answer no ranges are refused where
a part is wanted.

Example: `storage().manifest("https://example.org/fineweb/")` -> the files that its dataset.json lists
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from urllib.parse import quote, unquote, urlsplit

from orchestrator.core.datasets.dataset_index import DATASET, Promised, read_index
from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.ports import Part, Storage, StoredFile, Upload
from orchestrator.core.safe_names import checked
from orchestrator.remote.web.http_client import Response
from orchestrator.remote.web.range_reads import fetch

NO_WRITE = "a machine cannot write to a web address"


class HttpStorage:
    """Holds nothing."""

    scheme = "http"

    def manifest(self, uri: str) -> Sequence[StoredFile]:
        if posixpath.splitext(urlsplit(uri).path)[1]:
            return [self._file(uri, unquote(posixpath.basename(urlsplit(uri).path)))]
        folder = uri.rstrip("/")
        try:
            content = self.read(f"{folder}/{DATASET}", 0, 16 << 20)
        except StorageError as error:
            if not error.missing:
                raise
            raise StorageError(
                f"{uri}: {DATASET} not found, and HTTP lists no folders",
                f"give the URL of one file, or put the {DATASET} of `gptctl data prepare` beside the files",
                missing=True,
            ) from error
        listed = read_index(content, _plain(uri))
        index = StoredFile(DATASET, len(content), None, f"{folder}/{DATASET}")
        return [index, *(self._listed(folder, name, entry) for name, entry in listed.items())]

    def read(self, uri: str, start: int, size_bytes: int) -> bytes:
        answer = _accepted(uri, fetch(uri, first=start, size_bytes=size_bytes))
        if answer.status == 416:
            return b""
        if answer.status != 206 and start > 0:
            raise StorageError(f"{_plain(uri)}: the server ignores byte ranges", "give another address of the file")
        return answer.content

    def download_plan(
        self, uri: str, destination: str, start: int = 0, size_bytes: int | None = None, expires_s: float = 0.0
    ) -> Part:
        if size_bytes is None:
            size_bytes = self.manifest(uri)[0].size_bytes - start
        return Part(uri, start, size_bytes, destination)

    def upload_plan(self, uri: str, files: Sequence[StoredFile], expires_s: float = 0.0) -> Sequence[Upload]:
        raise UserError(f"{uri}: {NO_WRITE}", "use s3://BUCKET/PREFIX")

    def grants_end_at(self) -> float | None:
        return None

    def _file(self, uri: str, name: str) -> StoredFile:
        """By HEAD; by the first byte where a server answers no HEAD, or no length to it."""
        answer = fetch(uri, method="HEAD")
        if answer.status in (403, 405, 501) or (answer.status == 200 and answer.total_bytes is None):
            answer = fetch(uri, first=0, size_bytes=1)
        _accepted(uri, answer)
        if answer.total_bytes is None:
            raise StorageError(f"{_plain(uri)}: the server does not say how large the file is", "give another address")
        version = answer.headers.get("etag") or answer.headers.get("last-modified", "")
        return StoredFile(checked(name, uri), answer.total_bytes, None, uri, version)

    def _listed(self, folder: str, name: str, promised: Promised) -> StoredFile:
        uri = f"{folder}/{quote(name)}"
        found = self._file(uri, name)
        if found.size_bytes != promised.size_bytes:
            raise StorageError(
                f"{_plain(uri)} has {found.size_bytes} bytes, its {DATASET} says {promised.size_bytes}",
                "the files there do not belong together: ask their publisher, or prepare the data again",
            )
        return StoredFile(name, found.size_bytes, promised.sha256, uri, found.version)


def storage() -> Storage:
    """Needs no settings."""
    return HttpStorage()


def _accepted(uri: str, answer: Response) -> Response:
    """Raises StorageError for any other status than success."""
    if answer.status in (200, 206, 416):
        return answer
    if answer.status in (404, 410):
        raise StorageError(f"{_plain(uri)}: nothing found ({answer.status})", "correct the address", missing=True)
    if answer.status in (401, 403):
        raise StorageError(
            f"{_plain(uri)}: the server refuses it ({answer.status}); a signed address may have expired",
            "get a new address, or use hf:// or s3://, which know your credentials",
        )
    raise StorageError(f"{_plain(uri)}: the server answers {answer.status}", "try it in a browser")


def _plain(uri: str) -> str:
    """Without the query: it may hold a signature."""
    return uri.partition("?")[0]

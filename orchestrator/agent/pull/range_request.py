"""A piece of a file fetched by one request: the bytes of a range of a URL, into their place, whatever the server does.

It must not decide how often to try again, and never names a URL: it may be a secret.

Example::

    piece = Piece(Source("https://...", {"Authorization": "..."}, 0, 1 << 20, None), 0, 0, 1 << 20)
    why = fetch(descriptor, piece)           # Why() when it arrived; else a reason, and whether to try again
"""

from __future__ import annotations

import http.client
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO, NamedTuple

from ..contract.names import Code

BLOCK_BYTES = 1 << 18
SILENCE_S = 30.0
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
CODES_BY_STATUS = {
    401: Code.SOURCE_DENIED,
    403: Code.SOURCE_DENIED,
    404: Code.SOURCE_CHANGED,
    416: Code.SOURCE_CHANGED,
}


class Source(NamedTuple):
    """Where a part of the file comes from: bytes offset .. offset + size_bytes of the URL, or literal bytes."""

    url: str
    headers: dict[str, str]
    offset: int
    size_bytes: int
    sha256: str | None
    literal: bytes | None = None
    before: bytes = b""
    """What sha256 covers in front of this part, and the file here does not hold."""
    of_bytes: int | None = None
    """Size of the whole file at the URL, as it was announced."""
    gap: bool = False
    """Nothing comes: the bytes are all 0xff."""


class Why(NamedTuple):
    """Why a piece did not arrive; empty text: it did. `code`: another try makes no sense, and this is the refusal."""

    text: str = ""
    code: str | None = None
    wait_s: float | None = None


class Piece:
    """A stretch of one source, fetched by one request; `done_bytes` of it are in the file."""

    def __init__(self, source: Source, start: int, place: int, size_bytes: int, is_checked: bool = False) -> None:
        self.source = source
        self.start = start
        self.place = place
        self.size_bytes = size_bytes
        self.is_checked = is_checked
        """Whether it is all of its source, and the source has a digest."""
        self.done_bytes = 0
        self.settled = threading.Event()
        """Set when its bytes are there and right."""


def fetch(descriptor: int, piece: Piece) -> Why:
    """Fetches the rest of the piece into its place, once. Bytes that arrive before a break stay."""
    url = urllib.parse.urlsplit(piece.source.url)
    if url.scheme == "file":
        return _copy(descriptor, piece, urllib.parse.unquote(url.path))
    if url.scheme not in ("http", "https"):
        return Why("cannot pull from a %r source" % url.scheme, Code.SOURCE_REFUSED)
    try:
        with urllib.request.urlopen(_request(piece), timeout=SILENCE_S) as response:
            return _receive(descriptor, piece, response) or Why("%s ended early" % url.hostname)
    except urllib.error.HTTPError as error:
        return _refused(error, url.hostname)
    except (OSError, http.client.HTTPException) as error:
        # URLError wraps the reason; its text names neither path nor query.
        return Why("%s: %s" % (url.hostname, getattr(error, "reason", error)))


def _request(piece: Piece) -> urllib.request.Request:
    request = urllib.request.Request(piece.source.url)
    first = piece.start + piece.done_bytes
    request.add_header("Range", "bytes=%d-%d" % (first, piece.start + piece.size_bytes - 1))
    for name, value in piece.source.headers.items():
        # A token is for the server it was made for: it does not follow a redirect elsewhere.
        request.add_unredirected_header(name, value)
    return request


def _receive(descriptor: int, piece: Piece, response: Any) -> Why | None:
    """None when the response ended before the piece did."""
    first = piece.start + piece.done_bytes
    said = response.headers.get("Content-Range", "")
    if response.status != 206 and first != 0:
        return Why("the server ignores byte ranges", Code.SOURCE_WITHOUT_RANGES)
    if response.status == 206 and not said.startswith("bytes %d-" % first):
        return Why("the server sent another range (%s)" % said[:60], Code.SOURCE_REFUSED)
    total, announced = re.search(r"/(\d+)$", said), piece.source.of_bytes
    if total and announced is not None and int(total.group(1)) != announced:
        text = "the file there has %s bytes; %d were announced" % (total.group(1), announced)
        return Why(text, Code.SOURCE_CHANGED)
    return _write(descriptor, piece, response)


def _write(descriptor: int, piece: Piece, source: BinaryIO) -> Why | None:
    while piece.done_bytes < piece.size_bytes:
        block = source.read(min(BLOCK_BYTES, piece.size_bytes - piece.done_bytes))
        if not block:
            return None
        os.pwrite(descriptor, block, piece.place + piece.done_bytes)
        piece.done_bytes += len(block)
    return Why()


def _copy(descriptor: int, piece: Piece, path: str) -> Why:
    with open(path, "rb") as file:
        file.seek(piece.start + piece.done_bytes)
        return _write(descriptor, piece, file) or Why("%s is shorter than was promised" % path, Code.SOURCE_CHANGED)


def _refused(error: urllib.error.HTTPError, host: str | None) -> Why:
    wait = error.headers.get("Retry-After", "") if error.headers else ""
    wait_s = min(float(wait), 120.0) if wait.isdigit() else None
    text = "%s answers %d %s%s" % (host, error.code, error.reason, _said(error))
    if error.code in WORTH_ANOTHER_TRY:
        return Why(text, None, wait_s)
    return Why(text, CODES_BY_STATUS.get(error.code, Code.SOURCE_REFUSED))


def _said(error: urllib.error.HTTPError) -> str:
    """What a store of the S3 kind says about it, without the rest of its answer, which repeats the request."""
    try:
        body = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    found = [re.search("<%s>([^<>]{1,120})</%s>" % (name, name), body) for name in ("Code", "Message")]
    said = ": ".join(match.group(1) for match in found if match)
    return " (%s)" % said if said else ""

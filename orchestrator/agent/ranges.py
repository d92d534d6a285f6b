"""One file put together from byte ranges of URLs: which pieces there are, which bytes of them have arrived.

What has arrived is noted in a file beside the temporary one, after the bytes themselves are on the disk, so a killed
pull goes on at the byte. It must not decide how often to try again, and never names a URL: it may be a secret.

Example::

    assembly = Assembly("/root/.gptctl/data/3f9c/train.bin", [Source(url, {}, 0, 1 << 30, "ab12...")], 16 << 20)
    for piece in assembly.missing(): fetch(assembly, piece)
    assembly.complete()              # {'size_bytes': 1073741824, 'sha256': 'ab12...'}
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO, NamedTuple

from . import files
from .refusal import Refusal

BLOCK_BYTES = 1 << 18
SILENCE_S = 30.0
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)


class Source(NamedTuple):
    """Where a part of the file comes from: bytes offset .. offset + size_bytes of the URL."""

    url: str
    headers: dict[str, str]
    offset: int
    size_bytes: int
    sha256: str | None


class Why(NamedTuple):
    """Why a piece did not arrive; empty text: it did. `again`: whether another try makes sense."""

    text: str = ""
    again: bool = True
    wait_s: float | None = None


class Piece:
    """A stretch of one source, fetched by one request; `done_bytes` of it are in the file."""

    def __init__(self, source: Source, start: int, place: int, size_bytes: int) -> None:
        self.source = source
        self.start = start
        self.place = place
        self.size_bytes = size_bytes
        self.done_bytes = 0


class Assembly:
    """A destination file and its pieces."""

    def __init__(self, destination: str, sources: list[Source], piece_bytes: int) -> None:
        self.destination = destination
        self.sources = sources
        self.size_bytes = sum(source.size_bytes for source in sources)
        self.temporary = temporary_of(destination)
        self.notes = self.temporary + ".json"
        self.pieces = list(_pieces(sources, piece_bytes))
        self.descriptor = -1
        self._saved: list[int] = []
        self._open()

    def _open(self) -> None:
        """Takes up what an earlier pull left, if it was cut from the same sources."""
        if os.path.isfile(self.destination) and files.size_bytes(self.destination) == self.size_bytes:
            for piece in self.pieces:
                piece.done_bytes = piece.size_bytes
            return
        files.make_folder(os.path.dirname(self.destination))
        known = files.read_json(self.notes) or {}
        if known.get("layout") == self._layout() and files.size_bytes(self.temporary) == self.size_bytes:
            for piece, done in zip(self.pieces, known["done"]):  # noqa: B905  (strict= needs Python 3.10)
                piece.done_bytes = int(done)
        self.descriptor = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.descriptor, self.size_bytes)

    def _layout(self) -> list[Any]:
        parts = [[source.offset, source.size_bytes, source.sha256] for source in self.sources]
        return [parts, [piece.size_bytes for piece in self.pieces]]

    def missing(self) -> list[Piece]:
        return [piece for piece in self.pieces if piece.done_bytes < piece.size_bytes]

    def done_bytes(self) -> int:
        return sum(piece.done_bytes for piece in self.pieces)

    def save(self) -> None:
        """Notes what has arrived: bytes first, then the note that they are there."""
        done = [piece.done_bytes for piece in self.pieces]
        if self.descriptor < 0 or done == self._saved:
            return
        os.fdatasync(self.descriptor)
        files.write_json(self.notes, {"layout": self._layout(), "done": done})
        self._saved = done

    def complete(self) -> dict[str, Any]:
        """Verifies every part, gives the file its name and returns its size and digest."""
        path = self.destination if self.descriptor < 0 else self.temporary
        whole = hashlib.sha256()
        with open(path, "rb") as file:
            for source in self.sources:
                found = _digest(file, source.size_bytes, whole)
                if source.sha256 not in (None, found):
                    self._throw_away(path)
                    raise Refusal(
                        "wrong-bytes",
                        "%s: sha256 is %s, promised was %s" % (self.destination, found, source.sha256),
                        "the source changed or was damaged on its way; the file was removed, starting again fetches it",
                    )
        if self.descriptor >= 0:
            os.fsync(self.descriptor)
            os.close(self.descriptor)
            os.rename(self.temporary, self.destination)
            files.sync_folder(os.path.dirname(self.destination))
            files.remove(self.notes)
        return {"size_bytes": self.size_bytes, "sha256": whole.hexdigest()}

    def _throw_away(self, path: str) -> None:
        files.remove(path)
        files.remove(self.notes)


def temporary_of(destination: str) -> str:
    """The name the file has until it is whole and verified."""
    folder, name = os.path.split(destination)
    return os.path.join(folder, ".tmp-" + name)


def arrived_bytes(destination: str) -> int:
    """Disk space that the file, or what an earlier pull left of it, takes already."""
    found = (path for path in (destination, temporary_of(destination)) if os.path.exists(path))
    return sum(os.stat(path).st_blocks * 512 for path in found)


def _pieces(sources: list[Source], piece_bytes: int) -> list[Piece]:
    found, place = [], 0
    for source in sources:
        for start in range(0, source.size_bytes, piece_bytes):
            size = min(piece_bytes, source.size_bytes - start)
            found.append(Piece(source, source.offset + start, place + start, size))
        place += source.size_bytes
    return found


def _digest(file: BinaryIO, size_bytes: int, whole: Any) -> str:
    part, left = hashlib.sha256(), size_bytes
    while left:
        block = file.read(min(left, 1 << 20))
        if not block:
            break
        part.update(block)
        whole.update(block)
        left -= len(block)
    return part.hexdigest()


def fetch(assembly: Assembly, piece: Piece) -> Why:
    """Fetches the rest of the piece into its place, once. Bytes that arrive before a break stay."""
    url = urllib.parse.urlsplit(piece.source.url)
    if url.scheme == "file":
        return _copy(assembly, piece, urllib.parse.unquote(url.path))
    if url.scheme not in ("http", "https"):
        return Why("cannot pull from a %r source" % url.scheme, again=False)
    try:
        with urllib.request.urlopen(_request(piece), timeout=SILENCE_S) as response:
            return _receive(assembly, piece, response) or Why("%s ended early" % url.hostname)
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


def _receive(assembly: Assembly, piece: Piece, response: Any) -> Why | None:
    """None when the response ended before the piece did."""
    first = piece.start + piece.done_bytes
    said = response.headers.get("Content-Range", "")
    if response.status != 206 and first != 0:
        return Why("the server ignores byte ranges", again=False)
    if response.status == 206 and not said.startswith("bytes %d-" % first):
        return Why("the server sent another range (%s)" % said[:60], again=False)
    return _write(assembly, piece, response)


def _write(assembly: Assembly, piece: Piece, source: BinaryIO) -> Why | None:
    while piece.done_bytes < piece.size_bytes:
        block = source.read(min(BLOCK_BYTES, piece.size_bytes - piece.done_bytes))
        if not block:
            return None
        os.pwrite(assembly.descriptor, block, piece.place + piece.done_bytes)
        piece.done_bytes += len(block)
    return Why()


def _copy(assembly: Assembly, piece: Piece, path: str) -> Why:
    with open(path, "rb") as file:
        file.seek(piece.start + piece.done_bytes)
        return _write(assembly, piece, file) or Why("%s is shorter than was promised" % path, again=False)


def _refused(error: urllib.error.HTTPError, host: str | None) -> Why:
    wait = error.headers.get("Retry-After", "") if error.headers else ""
    wait_s = min(float(wait), 120.0) if wait.isdigit() else None
    return Why("%s answers %d %s" % (host, error.code, error.reason), error.code in WORTH_ANOTHER_TRY, wait_s)

"""A folder as a store, over a pair of pipes instead of a network: HTTP as the standard library speaks it.

What arrives is written beside its place, resumes at the byte after a broken link, and moves to its place when it is
whole and synced. What is asked for is read again from the disk: size and sha256 go back, the bytes stay.

    POST /PLACE      X-Sha256, X-Size-Bytes of a file to come  ->  {"have_bytes"} of that very file, from an earlier try
    PUT /PLACE       X-Sha256, X-Size-Bytes, X-Offset          ->  200 when these bytes are on the disk
    GET /PLACE                                                 ->  {"size_bytes", "sha256"} of the file there
    DELETE /PLACE                                              ->  200, there or not
    POST /end                                                  ->  200: nothing more will come

Example: `FolderService("/mnt/models/RUN", ssh.stdout, ssh.stdin).serve()` returns when the other side hung up.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from http.server import BaseHTTPRequestHandler
from typing import IO, Any, Callable

from ..system import files
from .object_requests import BLOCK_BYTES, Content

PLACE = re.compile(r"/((?:[A-Za-z0-9][\w.-]{0,99}/)?[A-Za-z0-9][\w.-]{0,99})")
SHA256 = re.compile(r"[0-9a-f]{64}")
NUMBER = re.compile(r"\d{1,15}")
PART = ".part-"
SPARE_BYTES = 1 << 30
"""Stays free on the disk: the box has other uses."""


class Refused(Exception):
    """Not done; status and words for the other side."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class FolderService(BaseHTTPRequestHandler):
    """Answers until the other side hangs up. `requests` counts what was answered; `ended`: nothing more will come."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: str, reader: IO[bytes], writer: IO[bytes]) -> None:
        # Without the base's own __init__, which wants a socket; rfile and wfile are all that the rest needs.
        self.folder = folder
        self.rfile = reader  # type: ignore[assignment]
        self.wfile = writer  # type: ignore[assignment]
        self.client_address = ("", 0)
        self.requests = 0
        self.ended = False

    def serve(self) -> None:
        """Returns at the end of the stream, or when it broke; what had arrived stays."""
        try:
            self.handle()
        except (OSError, ValueError):  # ValueError: the pipe was closed under our hands
            return

    def do_PUT(self) -> None:
        self._answer(self._take)

    def do_GET(self) -> None:
        self._answer(self._look)

    def do_DELETE(self) -> None:
        self._answer(self._remove)

    def do_POST(self) -> None:
        self._answer(self._end if self.path == "/end" else self._have)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the other side gets the error."""

    def _answer(self, act: Callable[[], dict[str, object]]) -> None:
        status = 200
        try:
            body = json.dumps(act()).encode()
        except Refused as refused:
            status, body = refused.status, refused.words.encode()
        except OSError as error:
            status, body = 507, ("%s: %s" % (self.folder, error.strerror or error)).encode()
        if status != 200 and self.command == "PUT":
            self.close_connection = True  # what is still on its way has no place
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.requests += 1

    def _path(self) -> str:
        found = PLACE.fullmatch(self.path)
        if found is None:
            raise Refused(400, "not a valid place: %r" % self.path[:100])
        return os.path.join(self.folder, found.group(1))

    def _part(self, path: str) -> str:
        digest = str(self.headers.get("X-Sha256", ""))
        if not SHA256.fullmatch(digest):
            raise Refused(400, "a file needs its X-Sha256")
        return os.path.join(os.path.dirname(path), "%s%s-%s" % (PART, digest[:16], os.path.basename(path)))

    def _number(self, name: str) -> int:
        text = str(self.headers.get(name, ""))
        if not NUMBER.fullmatch(text):
            raise Refused(400, "a file needs its %s" % name)
        return int(text)

    def _have(self) -> dict[str, object]:
        """How much of a file to come is here; whether the rest has room is said before its first byte."""
        path, size = self._path(), self._number("X-Size-Bytes")
        have = files.size_bytes(self._part(path))
        if have > size:
            raise Refused(400, "%d bytes of it are here, and it has %d" % (have, size))
        self._require_space(path, size - have)
        return {"have_bytes": have}

    def _require_space(self, path: str, to_come: int) -> None:
        """Before the first byte: for what was announced, and for what comes without an announcement."""
        files.make_folder(os.path.dirname(path))
        disk = os.statvfs(os.path.dirname(path))
        free = disk.f_bavail * disk.f_frsize
        if to_come + SPARE_BYTES > free:
            said = "%s has %.2f GB free; %.2f GB are to come and %.2f GB stay free"
            raise Refused(507, said % (self.folder, free / 1e9, to_come / 1e9, SPARE_BYTES / 1e9))

    def _take(self) -> dict[str, object]:
        """Adds bytes to a file to come; with the last ones it is at its place, and on the disk."""
        path = self._path()
        part = self._part(path)
        start, length, total = map(self._number, ("X-Offset", "Content-Length", "X-Size-Bytes"))
        if start + length > total:
            raise Refused(400, "it has %d bytes, and %d would be here" % (total, start + length))
        self._require_space(path, total - start)
        with open(part, "ab" if start else "wb") as file:  # from the beginning: whatever was here
            if file.tell() != start:
                raise Refused(409, "%d bytes are here, and what came begins at %d" % (file.tell(), start))
            self._receive(file, length)
            file.flush()
            os.fsync(file.fileno())
        if start + length == total:
            os.replace(part, path)
            files.sync_folder(os.path.dirname(path))
        return {}

    def _receive(self, file: IO[bytes], size_bytes: int) -> None:
        left = size_bytes
        while left:
            block = self.rfile.read(min(BLOCK_BYTES, left))
            if not block:
                raise ConnectionError("the other side hung up")
            file.write(block)
            left -= len(block)

    def _look(self) -> dict[str, object]:
        try:
            return content_of(self._path())._asdict()
        except FileNotFoundError:
            raise Refused(404, "not found") from None

    def _remove(self) -> dict[str, object]:
        path = self._path()
        files.remove(path)
        folder = os.path.dirname(path)
        if folder != self.folder and os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)
        return {}

    def _end(self) -> dict[str, object]:
        """Takes away what never became whole."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.startswith(PART):
                    files.remove(os.path.join(folder, name))
        self.ended = True
        self.close_connection = True
        return {}


def content_of(path: str) -> Content:
    """Size and sha256 of a file as the disk gives it back, not as memory still has it. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for block in iter(lambda: file.read(BLOCK_BYTES), b""):
            digest.update(block)
            size += len(block)
    return Content(size, digest.hexdigest())

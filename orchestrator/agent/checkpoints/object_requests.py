"""One object of a checkpoint store behind URLs that are already signed: put it, read it back, take it away.

Streams with a block in memory, whatever the size. A URL is a secret and appears in no message. It must not decide how
often to try again; offload.py does.

Example::

    sent = put({"put": "https://..."}, "/root/.gptctl/runs/R/checkpoints/step-000617/model.safetensors", 652_000_000)
    look("https://...", tick)        # Content(size_bytes=652000000, sha256='ab12...')
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO, Callable, NamedTuple

from ..contract.requests import Slot

SILENCE_S = 60.0
BLOCK_BYTES = 1 << 20
MOST_BYTES = 64 << 20
"""Of an object that is read into memory: lists and records, never weights."""
REDIRECTS = (301, 302, 303, 307, 308)
BUSY = (408, 429)
"""Answers that mean: later. So do all from 500 on."""
MOST_REDIRECTS = 4
Tick = Callable[[int], None]


class Content(NamedTuple):
    """What went there, or came back."""

    size_bytes: int
    sha256: str


class StoreTrouble(Exception):
    """The store did not do it; in words without the URL. `stale`: other URLs are needed, the same ones stay refused.
    `passes`: it was out of reach, or busy, which waiting may mend."""

    def __init__(self, text: str, stale: bool = False, passes: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.stale = stale
        self.passes = passes


class Missing(StoreTrouble):
    """The store has no such object."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is signed for one host goes to no other."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


class Body:
    """A stretch of a file as http.client reads it: in larger blocks than it asks for, hashed on their way."""

    def __init__(self, file: BinaryIO, size_bytes: int, tick: Tick) -> None:
        self.file = file
        self.left = size_bytes
        self.tick = tick
        self.digest = hashlib.sha256()

    def read(self, _: int = -1) -> bytes:
        block = self.file.read(min(BLOCK_BYTES, self.left))
        self.left -= len(block)
        self.digest.update(block)
        self.tick(len(block))
        return block


def nothing(_: int) -> None:
    """A tick that counts nothing."""


def of_bytes(content: bytes) -> Content:
    """What a few bytes are."""
    return Content(len(content), hashlib.sha256(content).hexdigest())


def put(slot: Slot, path: str, size_bytes: int, tick: Tick = nothing) -> Content:
    """The first size_bytes of the file become the object. Raises StoreTrouble, and OSError for the file."""
    if "parts" in slot:
        return _put_parts(slot, path, size_bytes, tick)
    with open(path, "rb") as file:
        sent, _ = send(slot["put"], file, size_bytes, tick)
    return Content(size_bytes, sent)


def put_bytes(slot: Slot, content: bytes) -> Content:
    """A small object."""
    with ask(slot["put"], "PUT", content, len(content)) as answer:
        answer.read(BLOCK_BYTES)
    return of_bytes(content)


def _put_parts(slot: Slot, path: str, size_bytes: int, tick: Tick) -> Content:
    """A large file in parts, each by its own URL; a part that breaks is sent again by the caller."""
    part_bytes, whole, tags = int(slot["part_bytes"]), hashlib.sha256(), []
    count = max(1, -(-size_bytes // part_bytes))
    if count > len(slot["parts"]):
        raise StoreTrouble("the file has %d bytes, and there are URLs for %d parts" % (size_bytes, len(slot["parts"])))
    with open(path, "rb") as file:
        for number in range(count):
            size = min(part_bytes, size_bytes - number * part_bytes)
            tags.append(_send_part(slot["parts"][number], file, number * part_bytes, size, tick))
        file.seek(0)
        for block in iter(lambda: file.read(BLOCK_BYTES), b""):
            whole.update(block)
    _complete(slot["complete"], tags)
    return Content(size_bytes, whole.hexdigest())


def _send_part(url: str, file: BinaryIO, start: int, size_bytes: int, tick: Tick) -> str:
    """Twice, so that one broken connection does not cost the whole file."""
    for last in (False, True):
        file.seek(start)
        try:
            return send(url, file, size_bytes, tick)[1]
        except StoreTrouble as trouble:
            if last or trouble.stale:
                raise
    raise AssertionError("the second try returned or raised")


def _complete(url: str, tags: list[str]) -> None:
    rows = "".join(
        "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>" % (number, tag)
        for number, tag in enumerate(tags, start=1)
    )
    body = ("<CompleteMultipartUpload>%s</CompleteMultipartUpload>" % rows).encode()
    with ask(url, "POST", body, len(body)) as answer:
        said = answer.read(BLOCK_BYTES)
    # S3 may answer 200 and tell of the failure in the body.
    if b"<Error>" in said:
        raise StoreTrouble("the store could not join the parts: %s" % _words(said))


def send(
    url: str, file: BinaryIO, size_bytes: int, tick: Tick, headers: dict[str, str] | None = None
) -> tuple[str, str]:
    """PUTs a stretch of a file, from where it stands. sha256 of what was sent, and the store's ETag."""
    body = Body(file, size_bytes, tick)
    with ask(url, "PUT", body, size_bytes, headers=headers) as answer:
        answer.read(BLOCK_BYTES)
        return body.digest.hexdigest(), str(answer.headers.get("ETag", ""))


def digest(file: BinaryIO, size_bytes: int, tick: Tick = nothing) -> str:
    """sha256 of the first size_bytes of a file."""
    file.seek(0)
    body = Body(file, size_bytes, tick)
    while body.read():
        pass
    return body.digest.hexdigest()


def look(url: str, tick: Tick = nothing, headers: dict[str, str] | None = None) -> Content:
    """Size and digest of what the store gives back, every byte of it. With headers, which may hold a token, redirects
    are followed without them."""
    digest, size = hashlib.sha256(), 0
    with ask(url, "GET", headers=headers, redirects=0 if headers is None else MOST_REDIRECTS) as answer:
        for block in _blocks(answer):
            digest.update(block)
            size += len(block)
            tick(len(block))
    return Content(size, digest.hexdigest())


def read(url: str) -> bytes:
    """A small object."""
    with ask(url, "GET") as answer:
        return bytes(answer.read(MOST_BYTES))


def read_json(url: str) -> dict[str, object]:
    """A small JSON object; StoreTrouble when it is something else."""
    try:
        value = json.loads(read(url))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StoreTrouble("the store did not give back a JSON object")
    return value


def remove(url: str) -> None:
    """Takes the object away; one that is not there is fine."""
    try:
        with ask(url, "DELETE") as answer:
            answer.read(BLOCK_BYTES)
    except Missing:
        pass


def _blocks(answer: Any) -> Any:
    expected = answer.headers.get("Content-Length")
    got = 0
    while True:
        try:
            block = answer.read(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise StoreTrouble("the answer broke off: %s" % type(error).__name__) from error
        if not block:
            break
        got += len(block)
        yield block
    if expected is not None and got < int(expected):
        raise StoreTrouble("the answer broke off after %d of %s bytes" % (got, expected))


def ask(
    url: str,
    method: str,
    body: Any = None,
    size_bytes: int | None = None,
    *,
    headers: dict[str, str] | None = None,
    redirects: int = 0,
) -> Any:
    """One request. headers: more than the usual ones; they go to this very address alone."""
    named = {"User-Agent": "gptctl-offload"}
    if size_bytes is not None:
        named.update({"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"})
    host = urllib.parse.urlsplit(url).hostname
    handlers: list[Any] = [_NoRedirect()]
    if _is_this_machine(host):
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url, body, dict(named, **(headers or {})), method=method)
        return urllib.request.build_opener(*handlers).open(request, timeout=SILENCE_S)
    except urllib.error.HTTPError as error:
        location = error.headers.get("Location") if redirects and error.code in REDIRECTS else None
        if location:
            error.close()
            return ask(urllib.parse.urljoin(url, location), method, redirects=redirects - 1)
        raise _refused(error, host) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # URLError wraps the reason; neither names path nor query. A ValueError's text could.
        reason = getattr(error, "reason", error)
        words = str(reason) if isinstance(reason, OSError) else type(reason).__name__
        raise StoreTrouble("%s: %s" % (host, words), passes=isinstance(reason, OSError)) from None


def _is_this_machine(host: str | None) -> bool:
    return host == "localhost" or (host or "").startswith("127.")


def _refused(error: urllib.error.HTTPError, host: str | None) -> StoreTrouble:
    with error:
        try:
            said = error.read(4096)
        except (OSError, http.client.HTTPException):
            said = b""
    words = "%s answers %d %s" % (host, error.code, _words(said) or error.reason)
    if error.code == 404 and b"NoSuchBucket" not in said:
        return Missing(words)
    return StoreTrouble(words, stale=error.code in (401, 403), passes=error.code in BUSY or error.code >= 500)


def _words(said: bytes) -> str:
    """`AccessDenied (Request has expired)` of an S3 error; its other elements may quote what was signed."""
    found = [re.search(rb"<%s>([^<]{1,120})</%s>" % (name, name), said) for name in (b"Code", b"Message")]
    code, message = [each.group(1).decode(errors="replace") if each else "" for each in found]
    return "%s (%s)" % (code, message) if message else code

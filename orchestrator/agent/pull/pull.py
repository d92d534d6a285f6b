"""The pull job: byte ranges from URLs into files, several at a time, resumed at the byte, verified before they count.

A file is built under a temporary name beside its place and renamed when every part has its digest, so a file with
the final name is whole. URLs and headers are secrets: they come by stdin and appear in no file and no message.

Destinations are below the agent's folder, or below `folder` of the spec. A part may be `literal` bytes (base64) in
place of a URL: the new header of a file that is cut from a larger one; or a `gap`, which is filled with 0xff. `before`
(base64) is what a part's digest covers in front of it and the file here does not hold: the old header. `of_bytes` is
the size of the whole file at the URL.

Example, spec and secrets::

    {"parts": [{"offset": 0, "size_bytes": 1048576, "destination": "data/3f9c/train.bin", "sha256": "ab12..."}]}
    {"parts": [{"url": "https://...", "headers": {"Authorization": "..."}}]}
"""

from __future__ import annotations

import base64
import binascii
import os
import queue
import threading
import time
from typing import Callable, Mapping

from ..contract.answers import PullResult
from ..contract.names import Code, JobName
from ..contract.requests import Part, PartSecret
from ..job.jobs import Job, Secrets
from ..system import files
from ..system.refusal import Refusal
from .assembly import Assembly, arrived_bytes
from .range_request import Piece, Source, fetch

STREAMS = 8
PIECE_BYTES = 16 << 20
SAY_EVERY_S = 0.5
TRIES = 5
WRONG_TRIES = 3
Say = Callable[[Mapping[str, object]], None]


def pull(job: Job, secrets: Secrets, say: Say) -> PullResult:
    """`{"files": {destination: {"size_bytes", "sha256"}}}`. Parts of one destination follow each other in its file."""
    root = _root(job)
    sources = plan(job, secrets, root)
    _check_space(root, sources)
    assemblies = [Assembly(destination, found, PIECE_BYTES) for destination, found in sources.items()]
    streams = max(1, min(64, int(job.spec.get("streams") or STREAMS)))
    _download(assemblies, streams, say)
    found = {}
    for assembly in assemblies:
        say({"step": "verify", "file": assembly.destination})
        found[assembly.destination] = assembly.complete()
    return {"files": found}


def _root(job: Job) -> str:
    """Below which everything is put: the agent's own folder, or the one that the host's entry names for data."""
    folder = job.spec.get("folder")
    if not folder:
        return job.places.root
    path = os.path.abspath(os.path.expanduser(str(folder)))
    files.make_folder(path)
    return path


def plan(job: Job, secrets: Secrets, root: str) -> dict[str, list[Source]]:
    """Destination -> what it is made of. Raises Refusal for a spec that cannot be meant."""
    parts, hidden = job.spec.get("parts"), secrets.get("parts")
    if not isinstance(parts, list) or not parts:
        raise Refusal(Code.BAD_REQUEST, "pull: the spec needs 'parts', a list")
    if not isinstance(hidden, list) or len(hidden) != len(parts):
        raise Refusal(Code.NEEDS_INPUT, "pull: the URLs are gone or do not match the parts; they must be sent again")
    sources: dict[str, list[Source]] = {}
    for part, secret in zip(parts, hidden):  # noqa: B905  (strict= needs Python 3.10; lengths were compared)
        destination = _inside(root, part.get("destination"))
        sources.setdefault(destination, []).append(_source(part, secret))
    return sources


def _source(part: Part, secret: PartSecret) -> Source:
    offset, size = part.get("offset"), part.get("size_bytes")
    if not isinstance(offset, int) or not isinstance(size, int) or offset < 0 or size < 0:
        raise Refusal(Code.BAD_REQUEST, "pull: a part needs offset and size_bytes as numbers of bytes")
    literal = _bytes(part["literal"]) if part.get("literal") is not None else None
    if literal is not None and len(literal) != size:
        raise Refusal(Code.BAD_REQUEST, "pull: a literal part of %d bytes says %d" % (len(literal), size))
    return Source(
        str(secret.get("url", "")), dict(secret.get("headers") or {}), offset, size, part.get("sha256"),
        literal, _bytes(part.get("before") or ""), part.get("of_bytes"), bool(part.get("gap")),
    )  # fmt: skip


def _bytes(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise Refusal(Code.BAD_REQUEST, "pull: a part's bytes are not base64: %s" % error) from error


def _inside(root: str, destination: object) -> str:
    """The destination as an absolute path under ROOT: nothing a storage or a laptop says leads elsewhere."""
    path = os.path.normpath(os.path.join(root, str(destination or "")))
    if not path.startswith(root + os.sep):
        raise Refusal(Code.BAD_REQUEST, "pull: %r is outside of %s" % (destination, root))
    return path


def _check_space(root: str, sources: dict[str, list[Source]]) -> None:
    """Before the first byte: what is to come, less what an earlier pull left, against the free space."""
    wanted = {path: sum(source.size_bytes for source in found) for path, found in sources.items()}
    needed = sum(max(0, size - arrived_bytes(path)) for path, size in wanted.items())
    disk = os.statvfs(root)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        message = "%.2f GB are to come and %s has %.2f GB free" % (needed / 1e9, root, free / 1e9)
        raise Refusal(Code.DISK_FULL, message, "free some space, or set `folder` of the host to a larger disk")


def _download(assemblies: list[Assembly], streams: int, say: Say) -> None:
    """Every missing piece, by so many threads, while another hashes what has arrived; the first piece that cannot be
    had ends it all."""
    work: queue.SimpleQueue[tuple[Assembly, Piece]] = queue.SimpleQueue()
    for assembly in assemblies:
        for piece in assembly.pieces:
            work.put((assembly, piece))
    failures: list[Refusal] = []
    workers = [threading.Thread(target=_drain, args=(work, failures), daemon=True) for _ in range(streams)]
    workers.append(threading.Thread(target=_digest, args=(assemblies, failures), daemon=True))
    for worker in workers:
        worker.start()
    total = sum(assembly.size_bytes for assembly in assemblies)
    while any(worker.is_alive() for worker in workers):
        for worker in workers:
            worker.join(SAY_EVERY_S / len(workers))
        _report(assemblies, total, say)
    _report(assemblies, total, say)
    if failures:
        raise failures[0]


def _digest(assemblies: list[Assembly], failures: list[Refusal]) -> None:
    def proceed(piece: Piece) -> bool:
        while not failures and not piece.settled.wait(0.2):
            pass
        return not failures

    for assembly in assemblies:
        assembly.digest(proceed)


def _report(assemblies: list[Assembly], total: int, say: Say) -> None:
    for assembly in assemblies:
        assembly.save()
    done = sum(assembly.done_bytes() for assembly in assemblies)
    say({"step": JobName.PULL, "bytes_done": done, "bytes_total": total})


def _drain(work: queue.SimpleQueue[tuple[Assembly, Piece]], failures: list[Refusal]) -> None:
    while not failures:
        try:
            assembly, piece = work.get_nowait()
        except queue.Empty:
            return
        try:
            _settle(assembly, piece)
            piece.settled.set()
        except (Refusal, OSError) as error:
            failures.append(error if isinstance(error, Refusal) else Refusal(Code.OS_ERROR, str(error)))


def _settle(assembly: Assembly, piece: Piece) -> None:
    """The bytes of the piece, right if it has a digest of its own: wrong ones are fetched again, a few times."""
    for _ in range(WRONG_TRIES):
        if piece.done_bytes < piece.size_bytes:
            _with_patience(assembly, piece)
        if assembly.check(piece):
            return
        if assembly.is_there:
            break
        piece.done_bytes = 0
    last = piece.start + piece.size_bytes
    assembly.refuse_bytes("bytes %d to %d are not what was promised (sha256 differs)" % (piece.start, last))


def _with_patience(assembly: Assembly, piece: Piece) -> None:
    """Tries again after a pause when the link broke; each try resumes at the byte that the last one reached."""
    name = os.path.basename(assembly.destination)
    fruitless = 0
    while fruitless < TRIES:
        before = piece.done_bytes
        why = fetch(assembly.descriptor, piece)
        if not why.text:
            return
        if why.code is not None:
            raise Refusal(why.code, "pull of %s: %s" % (name, why.text))
        fruitless = fruitless + 1 if piece.done_bytes == before else 0
        time.sleep(why.wait_s if why.wait_s is not None else min(0.1 * 2**fruitless, 10.0))
    raise Refusal(Code.SOURCE_LOST, "pull of %s: %s, %d times without a byte" % (name, why.text, TRIES))

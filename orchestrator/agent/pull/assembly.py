"""One file put together from pieces: which bytes of it have arrived, whether they are right, and its name at the end.

What has arrived is noted in a file beside the temporary one, after the bytes themselves are on the disk, so a killed
pull resumes at the byte. Two pulls of one file wait for each other. It must not decide how often to try again.

Example::

    assembly = Assembly("/root/.gptctl/data/3f9c/train.bin", [Source(url, {}, 0, 1 << 30, "ab12...")], 16 << 20)
    for piece in assembly.pieces: fetch(assembly.descriptor, piece) and assembly.check(piece)
    assembly.digest(proceed)
    assembly.complete()              # {'size_bytes': 1073741824, 'sha256': 'ab12...'}
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from typing import Callable, Iterator, List, cast

from ..contract.answers import PromisedFile
from ..contract.names import Code
from ..system import files
from ..system.refusal import Refusal
from .range_request import Piece, Source

MOST_CHECKED_BYTES = 64 << 20
"""A source with a digest, up to this size, is one piece: checked when it arrives, and fetched again alone."""
READ_BYTES = 1 << 20
GAP = b"\xff" * READ_BYTES


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
        self.is_there = False
        """Whether the file was whole under its name before."""
        self._saved: list[int] = []
        self._whole = hashlib.sha256()
        self._found: dict[int, str] = {}
        self._given_up = False
        self._notes_lock = threading.Lock()
        """One thread notes what has arrived while another finds wrong bytes and removes the note."""
        while not self._open():
            time.sleep(0.2)

    def _open(self) -> bool:
        """Takes up what an earlier pull left, if it was cut from the same sources. False: another pull is at it."""
        if os.path.isfile(self.destination) and files.size_bytes(self.destination) == self.size_bytes:
            self.descriptor = os.open(self.destination, os.O_RDONLY | os.O_CLOEXEC)
            self.is_there = True
            for piece in self.pieces:
                piece.done_bytes = piece.size_bytes
            return True
        files.make_folder(os.path.dirname(self.destination))
        self.descriptor = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _is_ours(self.descriptor, self.temporary):
            os.close(self.descriptor)
            return False
        self._take_up()
        return True

    def _take_up(self) -> None:
        known = files.read_json(self.notes) or {}
        if known.get("layout") == self._layout() and files.size_bytes(self.temporary) == self.size_bytes:
            for piece, done in zip(self.pieces, cast("List[int]", known["done"])):  # noqa: B905  (strict= needs Python 3.10)
                piece.done_bytes = int(done)
        os.ftruncate(self.descriptor, self.size_bytes)
        for piece in self.pieces:
            if piece.source.literal is not None:
                os.pwrite(self.descriptor, piece.source.literal, piece.place)
                piece.done_bytes = piece.size_bytes
            if piece.source.gap and piece.done_bytes < piece.size_bytes:
                for start in range(0, piece.size_bytes, READ_BYTES):
                    os.pwrite(self.descriptor, GAP[: piece.size_bytes - start], piece.place + start)
                piece.done_bytes = piece.size_bytes

    def _layout(self) -> list[object]:
        parts = [[source.offset, source.size_bytes, source.sha256] for source in self.sources]
        return [parts, [piece.size_bytes for piece in self.pieces]]

    def done_bytes(self) -> int:
        return sum(piece.done_bytes for piece in self.pieces)

    def save(self) -> None:
        """Notes what has arrived: bytes first, then the note that they are there."""
        done = [piece.done_bytes for piece in self.pieces]
        with self._notes_lock:
            if self.is_there or self._given_up or done == self._saved:
                return
            os.fdatasync(self.descriptor)
            files.write_json(self.notes, {"layout": self._layout(), "done": done})
            self._saved = done

    def check(self, piece: Piece) -> bool:
        """Whether the bytes of a piece that stands for its whole source have the promised digest."""
        if not piece.is_checked:
            return True
        digest = hashlib.sha256(piece.source.before)
        for block in self._blocks(piece):
            digest.update(block)
        return digest.hexdigest() == piece.source.sha256

    def digest(self, proceed: Callable[[Piece], bool]) -> None:
        """Hashes the file in order while it arrives; proceed waits for a piece and says whether to go on."""
        part = hashlib.sha256()
        for number, piece in enumerate(self.pieces):
            if not proceed(piece):
                return
            apart = len(self.sources) > 1 and piece.source.sha256 is not None and not piece.is_checked
            for block in self._blocks(piece):
                self._whole.update(block)
                if apart:
                    part.update(block)
            last = number + 1 == len(self.pieces) or self.pieces[number + 1].source is not piece.source
            if last and apart:
                self._found[id(piece.source)] = part.hexdigest()
            part = hashlib.sha256() if last else part

    def complete(self) -> PromisedFile:
        """Compares what digest() found, gives the file its name and returns its size and digest."""
        whole = self._whole.hexdigest()
        for source in self.sources:
            found = self._found.get(id(source), whole if len(self.sources) == 1 and not source.before else None)
            if None not in (source.sha256, found) and source.sha256 != found:
                self.refuse_bytes("sha256 is %s, promised was %s" % (found, source.sha256))
        if not self.is_there:
            os.fsync(self.descriptor)
            os.rename(self.temporary, self.destination)
            files.sync_folder(os.path.dirname(self.destination))
            files.remove(self.notes)
        os.close(self.descriptor)
        return {"size_bytes": self.size_bytes, "sha256": whole}

    def refuse_bytes(self, why: str) -> None:
        """Wrong bytes count for nothing: raises Refusal. Of many checked pieces, the right ones are kept."""
        with self._notes_lock:
            self._given_up = True
            if self.is_there or len(self.sources) == 1:
                files.remove(self.destination if self.is_there else self.temporary)
                files.remove(self.notes)
        raise Refusal(
            Code.WRONG_BYTES,
            "%s: %s" % (self.destination, why),
            "the source changed or was damaged on its way; what is wrong was removed, starting again fetches it",
        )

    def _blocks(self, piece: Piece) -> Iterator[bytes]:
        for start in range(0, piece.size_bytes, READ_BYTES):
            yield os.pread(self.descriptor, min(READ_BYTES, piece.size_bytes - start), piece.place + start)


def temporary_of(destination: str) -> str:
    """The name the file has until it is whole and verified."""
    folder, name = os.path.split(destination)
    return os.path.join(folder, ".tmp-" + name)


def arrived_bytes(destination: str) -> int:
    """Disk space that the file, or what an earlier pull left of it, takes already."""
    found = (path for path in (destination, temporary_of(destination)) if os.path.exists(path))
    return sum(os.stat(path).st_blocks * 512 for path in found)


def _is_ours(descriptor: int, path: str) -> bool:
    """Whether we hold the lock of the file at path: a moment ago another pull may have renamed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False


def _pieces(sources: list[Source], piece_bytes: int) -> Iterator[Piece]:
    place = 0
    for source in sources:
        checked = source.sha256 is not None and source.size_bytes <= MOST_CHECKED_BYTES
        step = source.size_bytes if checked or source.literal is not None else piece_bytes
        for start in range(0, source.size_bytes, max(step, 1)):
            size = min(step, source.size_bytes - start)
            yield Piece(source, source.offset + start, place + start, size, checked)
        place += source.size_bytes

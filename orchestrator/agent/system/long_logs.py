"""A log that grows without end keeps its beginning and its end: its middle is given back to the disk, as a hole.

Nobody who writes or follows the log notices: every byte keeps its offset, and who reads on from a byte in the hole goes
on behind it. A file system without holes (NFS before 4.2) keeps it all.

Example::

    bound("/root/.gptctl/runs/quickstart-1120-k3f9qa/train.log")     # with every tick of its supervisor
"""

from __future__ import annotations

import contextlib
import ctypes
import os

MOST_BYTES = 64 << 20
"""On the disk. A log of a day is 2 MB."""
FIRST_BYTES = 4 << 20
LAST_BYTES = 32 << 20
ALIGNED_BYTES = 1 << 20
KEEP_SIZE_AND_PUNCH_HOLE = 1 | 2


def bound(path: str) -> None:
    """Makes the hole once the log takes more than MOST_BYTES."""
    with contextlib.suppress(OSError, AttributeError):  # no such file, no fallocate, or a file system without holes
        found = os.stat(path)
        if found.st_blocks * 512 <= MOST_BYTES:
            return
        end = (found.st_size - LAST_BYTES) // ALIGNED_BYTES * ALIGNED_BYTES
        if end > FIRST_BYTES:
            _punch(path, FIRST_BYTES, end - FIRST_BYTES)


def _punch(path: str, offset: int, size_bytes: int) -> None:
    punch = ctypes.CDLL(None, use_errno=True).fallocate
    punch.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if punch(descriptor, KEEP_SIZE_AND_PUNCH_HOLE, offset, size_bytes):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)


def solid(descriptor: int, offset: int) -> tuple[int, int]:
    """From and to which byte there is content, at the offset or behind the hole it is in."""
    size = os.fstat(descriptor).st_size
    try:
        start = os.lseek(descriptor, offset, os.SEEK_DATA)
        return start, os.lseek(descriptor, start, os.SEEK_HOLE)
    except (OSError, AttributeError):
        return offset, size


def without_hole(path: str, copy: str) -> str:
    """What to send of a log: itself, or where it has a hole a copy of what is left of it, as one piece."""
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path)
        if found.st_size <= MOST_BYTES:
            return path
        with open(path, "rb") as log, open(copy, "wb") as left:
            left.write(log.read(FIRST_BYTES))
            left.write(b"\n[...]\n")
            log.seek(max(FIRST_BYTES, found.st_size - LAST_BYTES))
            left.write(log.read(LAST_BYTES))
        return copy
    return path

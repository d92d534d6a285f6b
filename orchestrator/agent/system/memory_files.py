"""Secrets on this machine: files in memory (tmpfs), for this user alone, and nowhere else.

They go with the power, so a rebooted machine has none and says so. What is kept here must never be written to a disk,
an argv, an environment or a log.

Example::

    put("guard", root, "secret"); read("guard", root)        # 'secret'
    forget("guard", root)
"""

from __future__ import annotations

import hashlib
import os
import stat

from ..contract.names import Code
from . import files
from .refusal import Refusal

FOLDER = os.environ.get("GPTCTL_MEMORY") or "/dev/shm"
"""A machine of a rehearsal has one of its own, which goes with its power."""
KINDS = ("store", "line", "keep-key", "keep-hosts")
"""What a job that stores or keeps has here."""


def path(kind: str, owner: str) -> str:
    """The file of one secret: one per user and owner, of which there may be several here."""
    digest = hashlib.sha256(owner.encode()).hexdigest()[:16]
    return os.path.join(FOLDER, "gptctl-%s-%d-%s" % (kind, os.getuid(), digest))


def put(kind: str, owner: str, secret: str) -> None:
    """Writes it, mode 0600. Raises Refusal where that folder is not a tmpfs."""
    if not _is_tmpfs(FOLDER):
        raise Refusal(Code.NO_TMPFS, "%s is not in memory here, and secrets are not written to a disk" % FOLDER)
    temporary = "%s.%d" % (path(kind, owner), os.getpid())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secret)
        os.rename(temporary, path(kind, owner))
    except OSError:
        files.remove(temporary)
        raise


def read(kind: str, owner: str) -> str | None:
    """The secret; None where there is none, or where the file could be another user's."""
    try:
        descriptor = os.open(path(kind, owner), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor) as file:
        found = os.fstat(file.fileno())
        ours = found.st_uid == os.getuid() and stat.S_ISREG(found.st_mode) and not found.st_mode & 0o077
        return file.read() if ours else None


def written_at(kind: str, owner: str) -> float:
    """Changes whenever the secret is replaced; 0 where there is none."""
    try:
        return os.stat(path(kind, owner)).st_mtime
    except OSError:
        return 0.0


def forget(kind: str, owner: str) -> None:
    """Removes the file; twice is fine."""
    files.remove(path(kind, owner))


def _is_tmpfs(folder: str) -> bool:
    """By the file system that was mounted last at this folder or nearest above it."""
    with open("/proc/self/mounts") as mounts:
        found = [line.split()[1:3] for line in mounts]
    above = [(len(place), order, kind) for order, (place, kind) in enumerate(found) if _is_below(folder, place)]
    return bool(above) and max(above)[2] in ("tmpfs", "ramfs")


def _is_below(folder: str, place: str) -> bool:
    return (folder + "/").startswith(place.rstrip("/") + "/")

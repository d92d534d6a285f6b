"""The API key on this machine: one file in memory (tmpfs), for this user alone, and nowhere else.

It goes with the power, so a rebooted machine has no key and says so. It must never be written to a disk, an argv, an
environment or a log.

Example::

    put(root, "secret"); read(root)        # 'secret'
    forget(root)
"""

from __future__ import annotations

import hashlib
import os
import stat

from . import files
from .refusal import Refusal

FOLDER = "/dev/shm"


def path(root: str) -> str:
    """The key's file: one per user and agent folder, since machines of a rehearsal share this folder."""
    digest = hashlib.sha256(root.encode()).hexdigest()[:16]
    return os.path.join(FOLDER, "gptctl-guard-%d-%s" % (os.getuid(), digest))


def put(root: str, key: str) -> None:
    """Writes the key, mode 0600. Raises Refusal where that folder is no tmpfs."""
    if not _is_tmpfs(FOLDER):
        raise Refusal("no-tmpfs", "%s is not in memory here: the key is not written to a disk" % FOLDER)
    temporary = "%s.%d" % (path(root), os.getpid())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(key)
        os.rename(temporary, path(root))
    except OSError:
        files.remove(temporary)
        raise


def read(root: str) -> str | None:
    """The key; None where there is none, or where the file could be somebody else's."""
    try:
        descriptor = os.open(path(root), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor) as file:
        found = os.fstat(file.fileno())
        ours = found.st_uid == os.getuid() and stat.S_ISREG(found.st_mode) and not found.st_mode & 0o077
        return file.read() if ours else None


def forget(root: str) -> None:
    """Removes the file; twice is fine."""
    files.remove(path(root))


def _is_tmpfs(folder: str) -> bool:
    with open("/proc/self/mounts") as mounts:
        kinds = [line.split()[2] for line in mounts if line.split()[1] == folder]
    return kinds[-1:] in (["tmpfs"], ["ramfs"])

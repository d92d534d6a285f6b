"""Who computes here: one file lock per GPU, shared by all users of the machine, and one per agent folder for the CPU.

The kernel frees a lock when its last holder dies, so a stale file never blocks anybody; what the file says is only
for the message. It must not decide what to do about a taken GPU.

Example::

    held = take_gpus(["GPU-5f1c..."], {"run": run, "user": "me", "pid": 12})      # descriptors; all or none
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import time
from typing import Sequence, TypedDict, cast

from ..contract.names import Code
from .refusal import Refusal

FOLDER = "/tmp/gptctl-locks"
UUID_PATTERN = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
NOFOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC


class Holder(TypedDict, total=False):
    """What the holder of a lock writes about itself; other programs may write there too."""

    run: str
    user: str
    pid: int
    started_at: float


class Taken(Refusal):
    """Another holder has the lock; `run` is the run that it names."""

    def __init__(self, code: str, message: str, hint: str, run: str) -> None:
        super().__init__(code, message, hint)
        self.run = run


def take_gpus(uuids: Sequence[str], holder: Holder, folder: str = FOLDER) -> list[int]:
    """Locks every GPU or none, in one fixed order so that two starters cannot block each other."""
    _shared_folder(folder)
    held: list[int] = []
    try:
        for uuid in sorted(set(uuids)):
            if not UUID_PATTERN.match(uuid):
                raise Refusal(Code.BAD_REQUEST, "%r is not a GPU uuid" % uuid)
            held.append(take(os.path.join(folder, "gpu-%s.lock" % uuid), holder, Code.GPUS_TAKEN, "GPU " + uuid, 0o666))
    except (Refusal, OSError):
        let_go(held)
        raise
    return held


def take(path: str, holder: Holder, code: str, what: str, mode: int = 0o600) -> int:
    """The descriptor that holds the lock. Raises Refusal naming the holder when another process has it."""
    descriptor = _open(path, mode)
    if not _flock(descriptor):
        os.close(descriptor)
        raise taken(code, what, read(path))
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return descriptor


def _flock(descriptor: int) -> bool:
    """A few tries: `held` takes a shared lock for an instant to see whether it can."""
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def taken(code: str, what: str, holder: Holder) -> Taken:
    """The refusal that names the holder. Its words come from a file others may write: nothing unprintable passes."""
    run, user, pid = (
        "".join(filter(str.isprintable, str(holder.get(key, "?"))))[:64] for key in ("run", "user", "pid")
    )
    message = "%s is taken by run %s of user %s (pid %s)" % (what, run, user, pid)
    return Taken(code, message, "wait for it, or stop it: gptctl stop %s" % run, run)


def _open(path: str, mode: int) -> int:
    """Opens or creates without following a link, and only a plain file: the folder is everybody's."""
    try:
        descriptor = os.open(path, os.O_RDWR | NOFOLLOW)
    except FileNotFoundError:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | NOFOLLOW, mode)
            os.fchmod(descriptor, mode)
        except FileExistsError:
            descriptor = os.open(path, os.O_RDWR | NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refusal(Code.BAD_LOCK, "%s is not a plain file" % path, "remove it: rm %s" % path)
    return descriptor


def _shared_folder(folder: str) -> None:
    """Mode 1777: every user may lock, and only its owner may remove a file. A link in its place is refused."""
    try:
        os.mkdir(folder)
        os.chmod(folder, 0o1777)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise Refusal(Code.BAD_LOCK, "%s is not a folder" % folder, "remove it: rm %s" % folder) from None


def let_go(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def read(path: str) -> Holder:
    """What a holder wrote about itself; empty when it is unreadable. For messages only."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NOFOLLOW)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        try:
            value = json.loads(file.read(4096))
        except ValueError:
            return {}
    return cast("Holder", value) if isinstance(value, dict) else {}


def held(paths: Sequence[str]) -> list[dict[str, object]]:
    """The lock files that a process holds now, with what the holder says."""
    found: list[dict[str, object]] = []
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            found.append({**read(path), "lock": os.path.basename(path)})
        finally:
            os.close(descriptor)
    return found

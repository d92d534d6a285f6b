"""Small files that survive a crash: written whole under a temporary name, synced, renamed.

A reader sees the old content or the new one. A file that is torn nevertheless (another program, a broken disk) reads
as absent: every reader can live without it, because the processes themselves are the truth.

Example::

    write_json("/root/.gptctl/jobs/RUN/train/state.json", {"pid": 12})
    read_json("/root/.gptctl/jobs/RUN/train/state.json")        # {'pid': 12}, or None
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import Iterator

TAIL_BYTES = 65536


def write_bytes(path: str, content: bytes, mode: int = 0o600) -> None:
    """Replaces the file at path, or leaves the old one. Durable on return."""
    temporary = "%s.%d.tmp" % (path, os.getpid())
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError:
        remove(temporary)
        raise
    sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    """Makes renames inside the folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str, value: object) -> None:
    write_bytes(path, (json.dumps(value) + "\n").encode())


def read_json(path: str) -> dict[str, object] | None:
    """The object in the file; None when it is absent, torn or something else."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def append_json(path: str, value: object) -> None:
    """Adds one line, durable on return. One write call, so lines of two writers never mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, (json.dumps(value) + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def tail(path: str, limit_bytes: int = TAIL_BYTES) -> bytes:
    """The last bytes of the file; empty when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit_bytes))
            return file.read(limit_bytes)
    except OSError:
        return b""


def last_json_lines(path: str) -> Iterator[dict[str, object]]:
    """The complete JSON lines at the end of the file, newest first. A last line without its newline is not complete."""
    lines = tail(path).split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def json_lines(path: str) -> Iterator[dict[str, object]]:
    """Every complete JSON object of the file, line by line; nothing if the file is missing."""
    try:
        with open(path, "rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value
    except OSError:
        return


def count_lines(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return file.read().count(b"\n")
    except OSError:
        return 0


def size_bytes(path: str) -> int:
    """Size of the file; 0 when there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def sha256_of(path: str) -> str | None:
    """Digest of the file's bytes; None when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def remove(path: str) -> None:
    """Removes the file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def make_folder(path: str) -> str:
    """The folder, made with its parents, private to this user."""
    os.makedirs(path, 0o700, exist_ok=True)
    return path


def listing(path: str) -> list[str]:
    """Sorted names in the folder; empty when there is none."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []

"""The far half of every transfer, sent as text to the machine's python3: `python3 -I -c TEXT VERB` installs nothing.

Python >= 3.8 and the standard library only; it must not import anything of ours. A question is JSON on stdin, the
answer JSON on stdout; an error is words on stderr and exit 1. `receive` and `send` move raw bytes instead.

    echo '{"folder": "~/src/x", "digest": "", "files": {"a.py": [12, "9f8..", false]}}' | python3 far_program.py look
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import tarfile
from typing import Any, Callable, Dict, List, Tuple, TypedDict

CHUNK_BYTES = 1 << 20
MARKER = ".gptctl-tree.json"
POSITION = struct.Struct("<Q")

Answer = Dict[str, object]


class Tree(TypedDict):
    """A folder and the files it is to hold: name -> (size in bytes, sha256, executable)."""

    folder: str
    digest: str
    files: Dict[str, Tuple[int, str, bool]]


class File(TypedDict):
    """A file that is about to be sent. `afresh`: what is there already is not hashed."""

    path: str
    size_bytes: int
    stamp: str
    streams: int
    afresh: bool


class Marker(TypedDict, total=False):
    """What the last complete push left."""

    digest: str
    files: List[str]


class Part(TypedDict):
    """A complete part, and the file it becomes."""

    part: str
    path: str
    mode: int


def look(question: Tree) -> Answer:
    """Which of the files are missing or different, by size, sha256 and whether it is executable. Makes the folder."""
    folder = _expanded(question["folder"])
    os.makedirs(folder, 0o700, exist_ok=True)
    return {
        "sealed": _marker(folder).get("digest") == question["digest"],
        "folder": folder,
        "missing": _missing(folder, question),
        "free_bytes": _free_bytes(folder),
        "rsync": shutil.which("rsync") is not None,
    }


def seal(question: Tree) -> Answer:
    """After a push: what is still missing. When nothing is, files of an earlier push go and the marker is written."""
    folder, files = _expanded(question["folder"]), question["files"]
    missing = _missing(folder, question)
    if missing:
        return {"missing": missing}
    for name in _marker(folder).get("files", []):
        if name not in files and _inside(name) and os.path.lexists(os.path.join(folder, name)):
            os.unlink(os.path.join(folder, name))
    marker = os.path.join(folder, MARKER)
    with open(marker + ".new", "w", encoding="utf-8") as file:
        json.dump({"digest": question["digest"], "files": sorted(files)}, file)
    os.replace(marker + ".new", marker)
    return {"missing": []}


def unpack(folder: str) -> Answer:
    """Regular files of a tar on stdin into the folder, each by a temporary name and rename."""
    folder = _expanded(folder)
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isfile() and _inside(member.name) else None
            if source is None:
                raise ValueError(f"not a regular file: {member.name!r}")
            path = os.path.join(folder, member.name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path + ".gptctl-part", "wb") as copy:
                shutil.copyfileobj(source, copy)
                os.fchmod(copy.fileno(), member.mode & 0o755)
            os.replace(path + ".gptctl-part", path)
    return {}


def prepare(question: File) -> Answer:
    """Before a file arrives: the sha256 of one of its size that is there already (unless asked to start afresh), else
    the room there is, and for streams > 0 a part file with how far each of its ranges got before."""
    path, size, streams = _expanded(question["path"]), question["size_bytes"], question["streams"]
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    there = os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) == size
    if there and not question["afresh"]:
        return {"path": path, "sha256": _sha256(path)}
    part, blocks = "", 0
    positions: List[int] = []
    if streams:
        part = part_name(path, question["stamp"])
        positions, blocks = open_part(part, size, streams), os.stat(part).st_blocks
    return {
        "path": path,
        "sha256": None,
        "part": part,
        "positions": positions,
        "free_bytes": _free_bytes(os.path.dirname(path)),
        "needed_bytes": max(0, size - blocks * 512),
    }


def receive(part: str, slot: str, start: str, done: str, size: str) -> Answer:
    """Bytes on stdin into the range that begins at start, after the part of it that is done; the slot says how far.

    Answers with the sha256 of the whole range as it lies in the file: what arrived before is read again for it.
    """
    widen(0)
    file, ranges = os.open(part, os.O_RDWR), os.open(part + ".ranges", os.O_WRONLY)
    position, end = int(start) + int(done), int(start) + int(size)
    digest = hashlib.sha256()
    for offset in range(int(start), position, CHUNK_BYTES):
        digest.update(os.pread(file, min(CHUNK_BYTES, position - offset), offset))
    while position < end:
        data = os.read(0, min(CHUNK_BYTES, end - position))
        if not data:
            raise EOFError(f"the stream ended {end - position} bytes early")
        digest.update(data)
        position += write_at(file, data, position)
        mark(ranges, int(slot), position - int(start))
    return {"sha256": digest.hexdigest()}


def send(path: str, offset: str, size: str) -> None:
    """Bytes of a regular file to stdout; a link is not followed and a device never read."""
    descriptor = os.open(_expanded(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError(f"not a regular file: {path}")
    widen(1)
    position, end = int(offset), int(offset) + int(size)
    while position < end:
        data = os.pread(descriptor, min(CHUNK_BYTES, end - position), position)
        if not data:
            raise EOFError(f"{path} is {end - position} bytes shorter than promised")
        position += len(data)
        while data:
            data = data[os.write(1, data) :]


def commit(question: Part) -> Answer:
    """The part file, complete and verified range by range, gets its final name."""
    os.chmod(question["part"], question["mode"])
    os.replace(question["part"], question["path"])
    drop_parts(question["path"])
    return {}


def discard(question: Dict[str, str]) -> Answer:
    """All parts of this file go: bytes in them are not what was sent."""
    drop_parts(question["path"])
    return {}


def part_name(path: str, stamp: str) -> str:
    """Where a file lies while it arrives. The stamp is of its content: another content never continues this part."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:150]}.{stamp}.part")


def open_part(part: str, size: int, streams: int) -> List[int]:
    """Positions of the ranges inside a part file, made when it is not there: bytes done in each range."""
    if not (os.path.isfile(part) and os.path.isfile(part + ".ranges")):
        with open(part, "wb") as file:
            file.truncate(size)
        with open(part + ".ranges", "wb") as file:
            file.write(POSITION.pack(0) * streams)
    with open(part + ".ranges", "rb") as file:
        return [position for (position,) in POSITION.iter_unpack(file.read(POSITION.size * streams))]


def drop_parts(path: str) -> None:
    """Parts of this file that other contents left behind."""
    folder, name = os.path.split(path)
    for other in os.listdir(folder or "."):
        if other.startswith(f".{name[:150]}.") and other.endswith((".part", ".part.ranges")):
            os.unlink(os.path.join(folder, other))


def write_at(descriptor: int, data: bytes, position: int) -> int:
    """All of data at the position; a short write is continued. Returns its length."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view, position = view[written:], position + written
    return len(data)


def mark(ranges: int, slot: int, done: int) -> None:
    """Note that the first `done` bytes of a range are written. Only ever after they are."""
    os.pwrite(ranges, POSITION.pack(done), slot * POSITION.size)


def _missing(folder: str, question: Tree) -> List[str]:
    return [name for name, entry in question["files"].items() if not _same(os.path.join(folder, name), *entry)]


def _marker(folder: str) -> Marker:
    """What the last complete push left: its digest and the names it wrote."""
    try:
        with open(os.path.join(folder, MARKER), encoding="utf-8") as file:
            found: Marker = json.load(file)
            return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _same(path: str, size: int, sha256: str, executable: bool) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    if not stat.S_ISREG(info.st_mode) or info.st_size != size or bool(info.st_mode & 0o100) != executable:
        return False
    return _sha256(path) == sha256


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for data in iter(lambda: file.read(CHUNK_BYTES), b""):
            digest.update(data)
    return digest.hexdigest()


def _inside(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in name.split("/")


def _free_bytes(folder: str) -> int:
    info = os.statvfs(folder or ".")
    return info.f_bavail * info.f_frsize


def _expanded(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def widen(descriptor: int) -> None:
    """A pipe of 1 MiB instead of 64 KiB, where it is a pipe and the kernel lets us: fewer turns per byte."""
    try:
        fcntl.fcntl(descriptor, 1031, CHUNK_BYTES)  # F_SETPIPE_SZ, named only from Python 3.10 on
    except OSError:
        return


def main(verb: str, *arguments: str) -> int:
    """One verb; with arguments they are its own, without, the question is JSON on stdin."""
    os.umask(0o077)  # makedirs gives a mode to the last folder alone
    known: List[Callable[..., Any]] = [look, seal, unpack, prepare, receive, send, commit, discard]
    verbs = {each.__name__: each for each in known}
    try:
        answer = verbs[verb](*(arguments or [json.load(sys.stdin)]))
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    if answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

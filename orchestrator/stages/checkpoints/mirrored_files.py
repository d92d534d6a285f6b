"""The files of a training on this side: each continues at the byte that was reached, and none grows without end.

A log that is longer than LOG_PART_BYTES is put aside as `train.log.until-BYTE`: BYTE of the machine's log is where
train.log begins now. The first and the newest part stay. Where a file has come to follows from names and sizes alone,
so a gptctl that is killed at any moment loses nothing and doubles nothing.

Example: `append(mirror / "train.log", position(mirror / "train.log"), b"step 1\\n")`
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.core.errors import RemoteError
from orchestrator.core.typed_json import WrongJson, parse
from trainer import run_files

LOG_PART_BYTES = 16 << 20
MOST_BYTES = 1 << 30
"""Of metrics and of events: a million lines are 300 MB."""
LONGEST_LINE_BYTES = 1 << 20
UNTIL = ".until-"
BEGINNINGS = (run_files.EVENT_STARTED, run_files.EVENT_RESUMED)


def parts(path: Path) -> list[Path]:
    """What was put aside of a log, oldest first."""
    found = {each: each.name.rpartition(UNTIL)[2] for each in path.parent.glob(f"{path.name}{UNTIL}*")}
    return sorted((each for each, end in found.items() if end.isdecimal()), key=_end)


def _end(part: Path) -> int:
    return int(part.name.rpartition(UNTIL)[2])


def start(path: Path) -> int:
    """The byte of the machine's file at which the one here begins."""
    return max(map(_end, parts(path)), default=0)


def position(path: Path) -> int:
    """How far the machine's file has come over."""
    return start(path) + (path.stat().st_size if path.exists() else 0)


def append(path: Path, offset: int, data: bytes) -> bool:
    """Writes `data`, which the machine's file has at `offset`; bytes that are here already are not written again.

    Raises RemoteError for a gap, except in a log, whose middle a machine may have dropped. False: the file here is as
    large as it gets, and nothing was written.
    """
    here = position(path)
    if offset > here:
        if path.name != run_files.LOG:
            raise RemoteError(f"{path.name}: the stream jumped from byte {here} to {offset}")
        _put_aside(path, offset)
        here = offset
    data = data[here - offset :]
    if path.name != run_files.LOG:
        if here + len(data) > MOST_BYTES:
            return False
        return _write(path, data)
    whole, newline, rest = data.rpartition(b"\n")
    if here + len(data) - start(path) < LOG_PART_BYTES or not newline:
        return _write(path, data)
    _write(path, whole + newline)
    _put_aside(path, here + len(whole) + 1)
    return _write(path, rest)


def cut(path: Path, step: int) -> bool:
    """Drops the lines of later steps, which a start from `step` writes again: the trainer has dropped the same ones of
    its own file. False: there was none."""
    good = 0
    if not path.exists():
        return False
    with path.open("rb") as file:
        for line in file:
            found = _step(line)
            if found is None or found > step:
                break
            good += len(line)
    return shorten(path, good)


def shorten(path: Path, size_bytes: int) -> bool:
    """The file is no longer than that. False: it was not."""
    if not path.exists() or path.stat().st_size <= size_bytes:
        return False
    os.truncate(path, size_bytes)
    return True


def _step(line: bytes) -> float | None:
    try:
        found = parse(line)["step"] if line.endswith(b"\n") else None
    except (WrongJson, KeyError, TypeError):
        return None
    return found if isinstance(found, int | float) else None


def begun_at(line: bytes) -> int | None:
    """The step from which a training goes on, where this line of its events says that it starts: also one that died
    before its first checkpoint, and starts from nothing."""
    try:
        record = parse(line)
    except WrongJson:
        return None
    if not isinstance(record, dict) or record.get("event") not in BEGINNINGS:
        return None
    step = record.get("step")
    return step if isinstance(step, int) else None


def last_part(path: Path) -> bytes:
    """The line at its end that is not whole yet."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_LINE_BYTES))
        return file.read().rpartition(b"\n")[2]


def _write(path: Path, data: bytes) -> bool:
    with path.open("ab") as file:
        file.write(data)
    return True


def _put_aside(path: Path, end: int) -> None:
    path.touch()
    path.rename(path.with_name(f"{path.name}{UNTIL}{end}"))
    for between in parts(path)[1:-1]:
        between.unlink()


def replace(path: Path, whole: Path) -> None:
    """A copy of the machine's whole file takes the place of what is here."""
    for part in parts(path):
        part.unlink()
    whole.replace(path)

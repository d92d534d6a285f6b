"""Looks for a word where it must not be: in files, command lines and environments, also while they come and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def content(file: Path) -> bytes:
    """Empty for a file that is gone meanwhile, or that is not for us to read."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def below(*folders: Path) -> list[Path]:
    """Every plain file below, also while the folders are being changed; links are not followed and not listed."""
    found = [Path(place) / name for folder in folders for place, _, names in os.walk(folder) for name in names]
    return [file for file in found if file.is_file() and not file.is_symlink()]


def holders(word: str | bytes, files: Iterable[Path]) -> list[Path]:
    """Those of these files that contain it."""
    sought = word.encode() if isinstance(word, str) else word
    return [file for file in files if sought in content(file)]


def of_processes(*names: str) -> list[Path]:
    """These files of every living process: `cmdline`, `environ`."""
    return [Path("/proc") / pid / name for pid in os.listdir("/proc") if pid.isdigit() for name in names]


def command_lines() -> dict[int, list[str]]:
    """The argv of every living process, by pid."""
    argvs = {int(file.parent.name): content(file) for file in of_processes("cmdline")}
    return {pid: argv.decode(errors="replace").split("\0") for pid, argv in argvs.items() if argv}


@contextmanager
def said_in_command_lines(*words: str) -> Iterator[set[str]]:
    """Which of the words any process had in its argv, looked at all the time: what anybody's `ps` would have shown."""
    found: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            argvs = [" ".join(argv) for argv in command_lines().values()]
            found.update(word for word in words if any(word in argv for argv in argvs))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()

"""The folder `.prepare` inside a dataset's, for the shards in progress and the state to resume from after a kill.

One process at a time. A state counts only for the same request on the same files (names, sizes, times). It must not
read the shards.

Example::

    with WorkFolder(Path("data"), request, files) as work_folder:
        split = Split(work_folder.folder, layout, limits, work_folder.state)
        work_folder.keep(split)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

from trainer.corpus.documents import SourceFile
from trainer.corpus.split import SplitState
from trainer.progress import Timer
from trainer.tokens.digests import DATASET
from trainer.tokens.token_writers import ShardsState, write_atomically

FOLDER = ".prepare"
STATE = "state.json"
KEEP_EVERY_S = 5.0
OURS = re.compile(r"(train|validation)(-\d{5})?\.(safetensors|bin)")
VERSION = 2
"""Version of the state; another one starts over."""


class WorkFolderError(ValueError):
    """The folder is in use by another process, or has token files of another program."""


class StoredState(TypedDict):
    """state.json: whose state this is, whether the shards were being moved, and the state of the split."""

    key: str
    settling: bool
    done: dict[str, Any]
    sides: dict[str, ShardsState]


class Resumable(Protocol):
    """What has a state to store: Split."""

    @property
    def finished_shards(self) -> int: ...
    def flush(self) -> None: ...
    def tidy(self) -> None: ...
    def state(self) -> SplitState: ...


class WorkFolder:
    """Holds the lock of the folder. Removes it at the end where no state was stored."""

    def __init__(self, to: Path, request: Mapping[str, object], files: Sequence[SourceFile]) -> None:
        self.to, self.folder = to, to / FOLDER
        self.key = _key(request, files)
        self.state: StoredState | None = None
        """What an earlier process stored for the same request, or None."""
        self._made = False
        self._lock = -1
        self._timer, self._kept_shards = Timer(KEEP_EVERY_S), 0

    def __enter__(self) -> WorkFolder:
        self._made = not self.to.exists()
        self.to.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.to)
        stored = _read(self.folder / STATE)
        if stored is not None and stored["key"] == self.key:
            self.state = stored
        else:
            self._start_over(unfinished_moves=stored is not None and stored["settling"])
        return self

    def __exit__(self, *_: object) -> None:
        if not (self.folder / STATE).exists():
            self.remove()
            if self._made and not any(self.to.iterdir()):
                self.to.rmdir()
        os.close(self._lock)

    def forget(self) -> None:
        """Drops a state that cannot be used."""
        self._start_over(unfinished_moves=self._settling)
        self.state = None

    def keep(self, kept: Resumable, *, at_once: bool = False) -> None:
        """Stores the state if a shard was finished, or every five seconds."""
        if self._timer.is_due(at_once=at_once or kept.finished_shards != self._kept_shards):
            self._write(kept.state, kept.flush, settling=self._settling)
            kept.tidy()
            self._kept_shards = kept.finished_shards

    def make_room(self, kept: Resumable) -> None:
        """Removes the older dataset before the shards are moved. Happens once for a request, however often the process
        is killed afterwards: the files found then are new."""
        if not self._settling:
            self.keep(kept, at_once=True)
            _remove_dataset(self.to)
            self._write(kept.state, kept.flush, settling=True)

    @property
    def _settling(self) -> bool:
        return self.state is not None and self.state["settling"]

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_over(self, *, unfinished_moves: bool) -> None:
        if unfinished_moves:
            _remove_dataset(self.to)
        others = [path.name for path in _token_files(self.to)]
        if others and not (self.to / DATASET).exists():
            raise WorkFolderError(f"{self.to} has {others[0]} and no {DATASET}: choose another folder")
        self.remove()
        self.folder.mkdir()

    def _write(self, state: Callable[[], SplitState], flush: Callable[[], None], *, settling: bool) -> None:
        flush()
        content: StoredState = {"key": self.key, "settling": settling, **state()}
        write_atomically(self.folder / STATE, json.dumps(content).encode())


def _locked(folder: Path) -> int:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise WorkFolderError(
            f"another process is preparing {folder}: wait for it, or choose another folder"
        ) from error
    return lock


def _token_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if OURS.fullmatch(path.name))


def _remove_dataset(folder: Path) -> None:
    (folder / DATASET).unlink(missing_ok=True)  # first: without it the folder counts as unfinished
    for path in _token_files(folder):
        path.unlink()


def _read(path: Path) -> StoredState | None:
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return cast(StoredState, state) if isinstance(state, dict) and {"key", "settling"} <= state.keys() else None


def _key(request: Mapping[str, object], files: Sequence[SourceFile]) -> str:
    stamps = [[str(file.path), file.size_bytes, file.path.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps([VERSION, request, stamps], sort_keys=True).encode()).hexdigest()

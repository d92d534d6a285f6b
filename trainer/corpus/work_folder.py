"""The folder in which a dataset comes to be: `.prepare` in its own, with the state to go on from after a kill.

One process at a time. A state counts only for the same request on the same files (names, sizes, times). It must not
know what the shards hold.

Example::

    with Workplace(Path("data"), request, files) as workplace:
        split = Split(workplace.folder, layout, limits, workplace.state)
        workplace.keep(split)
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
from trainer.tokens.token_writers import ShardsState, write_whole

FOLDER = ".prepare"
STATE = "state.json"
KEEP_EVERY_S = 5.0
OURS = re.compile(r"(train|validation)(-\d{5})?\.(safetensors|bin)")
VERSION = 1
"""Of the state; another one begins anew."""


class WorkplaceError(ValueError):
    """The folder is in use by another process, or holds token files that are not this program's."""


class StoredState(TypedDict):
    """state.json: whose state this is, whether the shards were being moved, and the state of the split."""

    key: str
    settling: bool
    done: dict[str, Any]
    sides: dict[str, ShardsState]


class Kept(Protocol):
    """What can be kept: Split."""

    @property
    def finished_shards(self) -> int: ...
    def flush(self) -> None: ...
    def tidy(self) -> None: ...
    def state(self) -> SplitState: ...


class Workplace:
    """Holds the lock of the folder. Leaves nothing behind where nothing was kept."""

    def __init__(self, to: Path, request: Mapping[str, object], files: Sequence[SourceFile]) -> None:
        self.to, self.folder = to, to / FOLDER
        self.key = _key(request, files)
        self.state: StoredState | None = None
        """What an earlier process kept, if it is of this request."""
        self._made = False
        self._lock = -1
        self._timer, self._kept_shards = Timer(KEEP_EVERY_S), 0

    def __enter__(self) -> Workplace:
        self._made = not self.to.exists()
        self.to.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.to)
        stored = _read(self.folder / STATE)
        if stored is not None and stored["key"] == self.key:
            self.state = stored
        else:
            self._begin_anew(unfinished_moves=stored is not None and stored["settling"])
        return self

    def __exit__(self, *_: object) -> None:
        if not (self.folder / STATE).exists():
            self.remove()
            if self._made and not any(self.to.iterdir()):
                self.to.rmdir()
        os.close(self._lock)

    def forget(self) -> None:
        """The state is of no use after all."""
        self._begin_anew(unfinished_moves=self._settling)
        self.state = None

    def keep(self, kept: Kept, *, at_once: bool = False) -> None:
        """Keeps the state if a shard was finished, or after a few seconds."""
        if self._timer.is_due(at_once=at_once or kept.finished_shards != self._kept_shards):
            self._write(kept.state, kept.flush, settling=self._settling)
            kept.tidy()
            self._kept_shards = kept.finished_shards

    def make_room(self, kept: Kept) -> None:
        """Before the shards are moved: takes the dataset that was here away. Done once for a request, however often
        the process is killed afterwards: what then lies in the folder is new."""
        if not self._settling:
            self.keep(kept, at_once=True)
            _remove_dataset(self.to)
            self._write(kept.state, kept.flush, settling=True)

    @property
    def _settling(self) -> bool:
        return self.state is not None and self.state["settling"]

    def remove(self) -> None:
        """The work is done, or there was none."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin_anew(self, *, unfinished_moves: bool) -> None:
        if unfinished_moves:
            _remove_dataset(self.to)
        strangers = [path.name for path in _token_files(self.to)]
        if strangers and not (self.to / DATASET).exists():
            raise WorkplaceError(f"{self.to} holds {strangers[0]} and no {DATASET}: choose another folder")
        self.remove()
        self.folder.mkdir()

    def _write(self, state: Callable[[], SplitState], flush: Callable[[], None], *, settling: bool) -> None:
        flush()
        content: StoredState = {"key": self.key, "settling": settling, **state()}
        write_whole(self.folder / STATE, json.dumps(content).encode())


def _locked(folder: Path) -> int:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise WorkplaceError(f"another process prepares {folder}: wait for it, or choose another folder") from error
    return lock


def _token_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if OURS.fullmatch(path.name))


def _remove_dataset(folder: Path) -> None:
    (folder / DATASET).unlink(missing_ok=True)  # first: from here on the folder is unfinished, and says so
    for path in _token_files(folder):
        path.unlink()


def _read(path: Path) -> StoredState | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return cast(StoredState, found) if isinstance(found, dict) and {"key", "settling"} <= found.keys() else None


def _key(request: Mapping[str, object], files: Sequence[SourceFile]) -> str:
    seen = [[str(file.path), file.size_bytes, file.path.stat().st_mtime_ns] for file in files]
    return hashlib.sha256(json.dumps([VERSION, request, seen], sort_keys=True).encode()).hexdigest()

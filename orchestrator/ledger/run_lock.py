"""The run's lock: one gptctl drives a run, and a second one learns who does.

The operating system's flock decides on one machine: it ends with its process, so a dead holder's lock is free at once.
On a home folder shared over a network flock may not reach the other machine; there the record in the file decides: one
that another machine wrote and did not release is respected. The file stays when the lock goes: deleting it would let
two processes hold a lock each on two files of one name.

    with RunLock.acquire(home, run_id, time.time): ...drive the stages...
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from orchestrator.core.errors import RunLocked, UserError
from orchestrator.ledger.identity import is_id
from orchestrator.ledger.records import RunRecord

FOLDER = "locks"
TAKEN_BACK = "the computer that took it back"
"""Who drives a run, in the ledger of the driver that gave it back."""

_PATIENCE_S = 0.3
"""A glance by holder() takes the lock for microseconds; a real holder keeps it for minutes."""


@dataclass(frozen=True)
class Holder:
    """Who drives a run: written into the lock file."""

    pid: int
    host: str
    machine_id: str
    at: float
    """UTC epoch seconds when the lock was taken."""


class RunLock:
    """A held lock. Leaving the context, release(), or the end of the process gives it back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def acquire(cls, home: Path, run_id: str, now: Callable[[], float] = time.time) -> RunLock:
        """Takes the lock of this run. Raises RunLocked with the holder's pid and host when another one drives it."""
        path = _path(home, run_id)
        descriptor = _open(path)
        try:
            if not _flock(descriptor, fcntl.LOCK_EX, _PATIENCE_S):
                raise _locked(run_id, _read(descriptor))
            holder = _read(descriptor)
            if holder is not None and _is_elsewhere(holder):
                raise _locked(run_id, holder, path)
            _write(descriptor, Holder(os.getpid(), os.uname().nodename, _machine_id(), now()))
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Gives the lock back and wipes the record. Twice is fine."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):  # a full disk must not keep the lock: closing is what frees it
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def refuse_driven_elsewhere(run: RunRecord) -> None:
    """Raises RunLocked for a run that was handed over: its driver's ledger is the one that counts."""
    driver = run.facts.driven_by
    if driver is not None:
        raise RunLocked(f"{run.id} is driven by {driver}", how_to_take(run.id, driver))


def how_to_take(run_id: str, driver: str) -> str:
    """The commands for a run that this driver has; also where it never comes back."""
    if driver == TAKEN_BACK:
        return "type the command there"
    take = f"gptctl driver take {run_id} {driver}"
    return f"gptctl status --driver {driver}, or {take}; where {driver} is gone for good: {take} --lost"


def holder(home: Path, run_id: str) -> Holder | None:
    """Who drives this run now, or None: for `stop`, which drives the ending itself when no other process does."""
    path = _path(home, run_id)
    if not path.exists():
        return None
    descriptor = _open(path)
    try:
        found = _read(descriptor)
        if not _flock(descriptor, fcntl.LOCK_SH, 0.0):
            return _read(descriptor) or Holder(0, "unknown", "", 0.0)
        return found if found is not None and _is_elsewhere(found) else None
    finally:
        os.close(descriptor)


def _path(home: Path, run_id: str) -> Path:
    if not is_id(run_id):
        raise UserError(f"{run_id!r} is not a run id", "gptctl status lists the runs")
    return home / FOLDER / f"{run_id}.lock"


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(path.parent, 0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
    except OSError as error:
        hint = "check the folder's owner, mode and free space, or set GPTCTL_HOME to another folder"
        raise UserError(f"the lock {path} cannot be opened: {error.strerror}", hint) from error
    return descriptor


def _flock(descriptor: int, kind: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                hint = "set GPTCTL_HOME to a folder on a disk of this machine"
                raise UserError(f"this file system cannot lock files: {error.strerror}", hint) from error
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)


def _read(descriptor: int) -> Holder | None:
    """The record, or None for an empty or torn one: the process that wrote it died, or writes at this moment."""
    try:
        value = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(value["pid"]), str(value["host"]), str(value["machine_id"]), float(value["at"]))
    except (ValueError, KeyError, TypeError):
        return None


def _write(descriptor: int, record: Holder) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(record)).encode(), 0)
        os.fsync(descriptor)
    except OSError as error:
        raise UserError(f"the run's lock cannot be written: {error.strerror}", "free some disk space") from error


def _is_elsewhere(record: Holder) -> bool:
    """Whether another machine wrote it. Either name is enough to be the same: laptops change host names with networks,
    and containers their ids."""
    return record.host != os.uname().nodename and record.machine_id != _machine_id()


def _machine_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    return f"{uuid.getnode():012x}"


def _locked(run_id: str, record: Holder | None, stale: Path | None = None) -> RunLocked:
    who = f"pid {record.pid} on {record.host}" if record else "another gptctl process"
    hint = f"watch it with: gptctl logs -f {run_id}, or end that process first"
    if stale is not None:
        hint = f"if that machine no longer runs gptctl: rm '{stale}', then repeat the command"
    return RunLocked(f"{run_id} is driven by {who}", hint)

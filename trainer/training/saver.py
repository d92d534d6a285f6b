"""Saves checkpoints while training continues: one thread writes, then swaps the links and deletes old folders.

The loop waits only for the copy to the host. A save that fails (disk full) is a warning and does not end the run: the
old checkpoints stay, and the next interval tries again. What retention keeps stays, and always the newest.

Example::

    saver = Saver(run_folder, config, journal.event)
    if saver.is_free(step):
        saver.save(Snapshot(...))    # returns at once; the event `checkpointed` follows
    saver.close()                    # waits for the last one
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from trainer.checkpoints.checkpoint import (
    Snapshot,
    checkpoint_steps,
    size_bytes,
    sync_folder,
    write_checkpoint,
    write_manifest,
)
from trainer.checkpoints.host_buffers import HostBuffers
from trainer.checkpoints.manifest import CheckpointError, read_manifest, read_meta
from trainer.contract import RunConfig
from trainer.run_files import (
    BEST,
    CHECKPOINTS,
    EVENT_CHECKPOINTED,
    EVENT_WARNING,
    LATEST,
    SAFE_FILE,
    TEMPORARY_PREFIX,
    TRAINER_STATE_FILE,
    Retention,
    checkpoint_name,
    checkpoint_step,
)
from trainer.training.failures import Emit

DAMAGED_PREFIX = "damaged-"
"""Folders that did not verify are renamed, not deleted: they are evidence until the disk is nearly full."""


class Writer(NamedTuple):
    """How a snapshot becomes a folder: written by this rank alone, or its rows by each of several ranks."""

    write: Callable[[Path, Snapshot], Path] = write_checkpoint
    ranks: int = 1
    leads: bool = True


class Saver:
    """Holds the writing thread and knows the best checkpoint so far. Only rank 0 has one, under FSDP every rank."""

    def __init__(self, run_folder: Path, config: RunConfig, emit: Emit, writer: Writer | None = None) -> None:
        self.root = run_folder / CHECKPOINTS
        self.writer = writer or Writer()
        self.retention = Retention(config.retention.keep_last, config.retention.keep_every)
        self.require_safe = config.retention.require_safe
        self.emit = emit
        self.patience_s = config.train.process_group_timeout_s / 2
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self.pending: Future[None] | None = None
        self.buffers = HostBuffers()
        self.failure = ""
        self.root.mkdir(exist_ok=True)
        self.best_step, self.best_loss = _best_so_far(self.root)

    def is_free(self, step: int) -> bool:
        """Waits for the save before this one, which still reads the buffers, for less time than the other ranks wait in
        a collective. False where it takes longer: this step is not saved, and a warning says so."""
        if self.pending is not None and not wait([self.pending], self.patience_s).done:
            self._fail(step, f"the one before it is still being written after {self.patience_s:.0f} s")
            return False
        return True

    def save(self, snapshot: Snapshot) -> None:
        """Starts writing, once is_free() has said so."""
        self.pending = self.thread.submit(self.write, snapshot)

    def close(self) -> None:
        """Waits until everything is on disk. Raises CheckpointError where the last save failed."""
        self.thread.shutdown(wait=True)
        if self.pending is not None:
            self.pending.result()
        if self.failure:
            raise CheckpointError(f"{self.failure}: free space below {self.root} and start the run again")

    def write(self, snapshot: Snapshot) -> None:
        """Writes one checkpoint in this thread. A failing disk becomes a `warning` event."""
        started = time.monotonic()
        try:
            if self.writer.leads:
                self._make_room(snapshot)
            folder = self.writer.write(self.root, snapshot)
            if not self.writer.leads:
                self.failure = ""
                return
            point_link(self.root / LATEST, folder.name)
            best = self._update_best(snapshot)
        except OSError as error:
            self._fail(snapshot.step, error.strerror or str(error))
            return
        self.failure = ""
        seconds = round(time.monotonic() - started, 3)
        size = sum(entry["size_bytes"] for entry in read_manifest(folder).values())
        self.emit(EVENT_CHECKPOINTED, snapshot.step, folder=folder.name, size_bytes=size, seconds=seconds, best=best)
        try:
            self._delete_old_checkpoints()
        except (OSError, CheckpointError) as error:
            self.emit(EVENT_WARNING, snapshot.step, reason=f"older checkpoints were not deleted: {error}")

    def _fail(self, step: int, reason: str) -> None:
        self.failure = f"checkpoint of step {step} not written: {reason}"
        self.emit(EVENT_WARNING, step, reason=f"{self.failure}; the older ones are intact")

    def _update_best(self, snapshot: Snapshot) -> bool:
        """The best checkpoint has the least validation loss: the training loss of one batch is noise."""
        loss = snapshot.meta.get("val_loss")
        if loss is None or not math.isfinite(loss) or (self.best_loss is not None and loss >= self.best_loss):
            return False
        point_link(self.root / BEST, checkpoint_name(snapshot.step))
        self.best_step, self.best_loss = snapshot.step, loss
        return True

    def _kept_steps(self, folders: dict[int, Path]) -> frozenset[int]:
        """What retention keeps, and always the newest: there must be one to resume from."""
        return self.retention.kept(folders, self.best_step) | frozenset([max(folders)] if folders else [])

    def _delete_old_checkpoints(self) -> None:
        folders = checkpoint_steps(self.root)
        kept = self._kept_steps(folders)
        for step, folder in folders.items():
            if step not in kept and (not self.require_safe or (folder / SAFE_FILE).exists()):
                _remove(folder)
        if self.best_step in folders and self.best_step not in self._kept_steps_without_best(folders):
            _keep_weights_only(folders[self.best_step])

    def _kept_steps_without_best(self, folders: dict[int, Path]) -> frozenset[int]:
        return self.retention.kept(folders, None) | frozenset([max(folders)])

    def _make_room(self, snapshot: Snapshot) -> None:
        """The one exception to require_safe: a disk too small for the next save. Never best or the newest two."""
        needed = self.writer.ranks * size_bytes(snapshot)
        for folder in [*sorted(self.root.glob(DAMAGED_PREFIX + "*")), *self._deletable()]:
            if shutil.disk_usage(self.root).free >= needed:
                return
            _remove(folder)
            self.emit(
                EVENT_WARNING, snapshot.step, reason=f"disk too small for the next checkpoint: dropped {folder.name}"
            )

    def _deletable(self) -> list[Path]:
        folders = checkpoint_steps(self.root)
        held = self._kept_steps(folders) | frozenset(list(folders)[-2:])
        return [folder for step, folder in folders.items() if step not in held]


def clean_up(run_folder: Path, rejected: dict[str, str]) -> None:
    """At the start: removes what a killed save left behind, and sets folders that did not verify aside."""
    root = run_folder / CHECKPOINTS
    for leftover in root.glob(TEMPORARY_PREFIX + "*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    for name in rejected:
        aside = root / (DAMAGED_PREFIX + name)
        shutil.rmtree(aside, ignore_errors=True)
        (root / name).rename(aside)


def point_link(link: Path, target: str) -> None:
    """Points the symlink `link` at `target`, by rename: a reader sees the old target or the new one."""
    fresh = link.with_name(TEMPORARY_PREFIX + link.name)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    sync_folder(link.parent)


def _remove(folder: Path) -> None:
    """Renames first: a half-deleted folder must not have a checkpoint's name."""
    doomed = folder.with_name(TEMPORARY_PREFIX + folder.name)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _keep_weights_only(folder: Path) -> None:
    """Best alone needs no optimizer state: 0.65, not 1.96 GB. The manifest first, then the file it no longer lists."""
    files = read_manifest(folder)
    if files.pop(TRAINER_STATE_FILE, None) is not None:
        write_manifest(folder, files)
    (folder / TRAINER_STATE_FILE).unlink(missing_ok=True)


def _best_so_far(root: Path) -> tuple[int | None, float | None]:
    """Step and validation loss of what `best` points to; None, None where there is none or it is unreadable."""
    link = root / BEST
    step = checkpoint_step(os.readlink(link)) if link.is_symlink() else None
    if step is None:
        return None, None
    try:
        meta = read_meta(root / checkpoint_name(step))
    except CheckpointError:
        return None, None
    return step, meta.get("val_loss")

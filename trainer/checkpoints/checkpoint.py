"""Checkpoint folders: written whole or not at all, verified before they are believed, read back by name.

A folder appears under its name only after every byte of it is on disk: temporary folder, fsync of each file, manifest
with sha256, rename, fsync of the parent. It must not decide which checkpoints stay (saver.py does) and must not run
code from a file: tensors are safetensors or a pickle restricted to tensors and plain values.

Example::

    folder = write_checkpoint(run_folder / "checkpoints", Snapshot(step=617, model=..., trainer=..., meta=...))
    point = find_newest(run_folder)                     # ResumePoint(folder, step, rejected={"step-001234": "..."})
    model, meta = load_model(run_folder, torch.device("cpu"))
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypedDict, TypeVar, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.checkpoints import skip_back
from trainer.checkpoints.manifest import CheckpointError, checkpoint_folder, read_meta, sha256_of, task_of, verify
from trainer.contract import ModelConfig
from trainer.model.gpt import GPT
from trainer.model.optimizers import State
from trainer.run_files import (
    CHECKPOINTS,
    MANIFEST_FILE,
    META_FILE,
    MODEL_FILE,
    TEMPORARY_PREFIX,
    TRAINER_STATE_FILE,
    CheckpointMeta,
    ManifestEntry,
    checkpoint_name,
    checkpoint_step,
)
from trainer.tasks.objective import apply_task
from trainer.weights.layouts import read_model
from trainer.weights.tokenizers import own_step, own_tokenizer
from trainer.weights.weight_files import WeightsError, holds_weights, open_weights, why_refused

Value = TypeVar("Value")


class TrainerState(TypedDict, total=False):
    """trainer_state.pt: what training needs beside the weights to resume."""

    optimizer: State
    scaler: dict[str, object]
    """State of the gradient scaler; empty without one."""


@dataclass(frozen=True)
class Snapshot:
    """A training state on the host, detached from the device: a thread may write it while training continues. It is
    good until the next one is made, which takes the same memory."""

    step: int
    model: dict[str, Tensor]
    """Weights by name, without padding."""
    trainer: TrainerState
    meta: CheckpointMeta
    """What readers need without torch: step, tokens, losses, model config, tokenizer."""


def size_bytes(snapshot: Snapshot) -> int:
    """About what the folder takes on disk: its tensors and some headers."""
    tensors = [*snapshot.model.values()]
    for entry in snapshot.trainer.get("optimizer", {}).values():
        tensors += entry.values()
    return int(sum(tensor.nbytes for tensor in tensors) * 1.01) + 64_000


def write_checkpoint(root: Path, snapshot: Snapshot) -> Path:
    """Writes root/step-NNNNNN and returns it. Raises OSError (disk full), and then leaves nothing behind."""
    final = root / checkpoint_name(snapshot.step)
    temporary = root / (TEMPORARY_PREFIX + final.name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {
            MODEL_FILE: write_weights(temporary / MODEL_FILE, snapshot.model),
            TRAINER_STATE_FILE: write_durably(
                temporary / TRAINER_STATE_FILE, lambda file: save_trainer_state(snapshot.trainer, file)
            ),
        }
        publish(temporary, final, files, snapshot.meta)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def publish(temporary: Path, final: Path, files: Mapping[str, ManifestEntry], meta: CheckpointMeta) -> None:
    """Adds meta and manifest to the folder whose tensors are written, and gives it its name. Raises OSError."""
    described = write_durably(temporary / META_FILE, lambda file: file.write(_as_json(meta)))
    write_manifest(temporary, {**files, META_FILE: described})
    _put_in_place(temporary, final)
    sync_folder(final.parent)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Moves a folder of the same step aside first: a damaged one may exist."""
    aside = temporary.with_name(temporary.name + "-replaced")
    if final.exists():
        final.rename(aside)
    temporary.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


class HashingFile:
    """A file being written that knows its size and sha256: hashing costs no second read."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb", buffering=0)
        self.digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of data. Raises OSError."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        try:
            while len(view):
                view = view[self.file.write(view) or 0 :]
        except OSError as error:
            self.failure = error
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered; torch.save asks for it."""


def write_weights(path: Path, tensors: dict[str, Tensor]) -> ManifestEntry:
    """Writes a safetensors file to the disk and returns its manifest entry. Raises OSError.

    The library writes the file itself, without holding the interpreter: building the bytes first would stop the
    training thread for a second (measured with 640 MB), and reading them back for the sha256 does not.
    """
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error).rpartition("I/O error: ")[2]) from error
    return entry_of(path)


def entry_of(path: Path) -> ManifestEntry:
    """The manifest entry of a written file, whose bytes it sends to the disk before. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {
            "size_bytes": os.fstat(file.fileno()).st_size,
            "sha256": sha256_of(file),
        }


def save_trainer_state(state: TrainerState, file: HashingFile) -> None:
    """torch.save without zip's CRC: the manifest has a sha256, and the CRC delays the training thread."""
    torch.serialization.set_crc32_options(False)
    torch.save(state, cast(IO[bytes], file))


def write_durably(path: Path, write: Callable[[HashingFile], object]) -> ManifestEntry:
    """Writes path through `write`, to the disk, and returns its manifest entry {"size_bytes", "sha256"}."""
    file = HashingFile(path)
    with file.file:
        try:
            write(file)
        except RuntimeError as error:  # torch.save hides the disk's error behind its own
            raise file.failure or error from None
        os.fsync(file.file.fileno())
    return {"size_bytes": file.size, "sha256": file.digest.hexdigest()}


def write_manifest(folder: Path, files: Mapping[str, ManifestEntry]) -> None:
    """Replaces the manifest by rename, so that it is never half written, and makes the folder durable."""
    fresh = folder / (TEMPORARY_PREFIX + MANIFEST_FILE)
    write_durably(fresh, lambda file: file.write(_as_json({"files": files})))
    fresh.replace(folder / MANIFEST_FILE)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes renames and new names inside the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


@dataclass(frozen=True)
class ResumePoint:
    """The newest checkpoint that can be resumed from, and the newer ones that cannot: folder name to reason."""

    folder: Path | None
    step: int
    rejected: dict[str, str] = field(default_factory=dict)


def checkpoint_steps(root: Path) -> dict[int, Path]:
    """Checkpoint folders under root by step, oldest first. Skips links and folders with other names."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()] if root.is_dir() else []
    steps = {step: path for path in folders if (step := checkpoint_step(path.name)) is not None}
    return dict(sorted(steps.items()))


def find_newest(run_folder: Path) -> ResumePoint:
    """The newest checkpoint whose manifest verifies and that holds the trainer's state; the links are not trusted. None
    of the steps that the run leaves out."""
    rejected: dict[str, str] = {}
    skips = skip_back.read(run_folder)
    for step, folder in reversed(checkpoint_steps(run_folder / CHECKPOINTS).items()):
        if skip_back.left_out(skips, step):
            continue
        try:
            if TRAINER_STATE_FILE in verify(folder):
                return ResumePoint(folder, step, rejected)
        except CheckpointError as error:
            rejected[folder.name] = str(error)
    return ResumePoint(None, 0, rejected)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. Raises CheckpointError."""
    try:
        return safetensors.torch.load_file(folder / MODEL_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder.name}: {MODEL_FILE} cannot be loaded: {error}") from error


def read_trainer_state(folder: Path) -> TrainerState:
    """The trainer's state, on the CPU, mapped rather than read. Raises CheckpointError, also for a foreign pickle."""
    path = folder / TRAINER_STATE_FILE
    if not path.exists():
        raise CheckpointError(
            f"{folder.name}: holds weights only, no {TRAINER_STATE_FILE}; training cannot resume from it"
        )
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        # Without its cause: torch's own text tells how to load the file unsafely, which would run its code.
        raise CheckpointError(f"{folder.name}: {TRAINER_STATE_FILE} is refused: {why_refused(str(error))}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder.name}: {TRAINER_STATE_FILE} is not the trainer's")
    return cast(TrainerState, state)


def load_model(path: Path, device: torch.device) -> tuple[GPT, CheckpointMeta]:
    """The verified model of a run or checkpoint folder, or a foreign one, in evaluation mode, and its meta. Raises
    CheckpointError."""
    try:
        folder = checkpoint_folder(path)
    except CheckpointError:
        if not holds_weights(path):
            raise
        return _load_foreign(path, device)
    verify(folder)
    meta = read_meta(folder)
    known = {item.name for item in dataclasses.fields(ModelConfig)}
    shape = meta.get("model")
    if not isinstance(shape, dict) or not shape.keys() <= known:
        raise CheckpointError(f"{folder.name}: {META_FILE} does not describe a model of this trainer")
    try:
        model = GPT(ModelConfig(**shape))
        apply_task(model, task_of(meta))
        model.load_unpadded_state(read_weights(folder))
    except ValueError as error:
        raise CheckpointError(f"{folder.name}: {error}") from error
    return model.to(device).eval(), meta


def _load_foreign(path: Path, device: torch.device) -> tuple[GPT, CheckpointMeta]:
    """A model that another program wrote, or an export of this one."""
    try:
        found = open_weights(path)
        read = read_model(found)
        model = GPT(read.model)
        model.load_unpadded_state({name: torch.from_numpy(each.make()) for name, each in read.tensors.items()})
        tokenizer = own_tokenizer(found, read.model)
    except WeightsError as error:
        raise CheckpointError(str(error)) from None
    meta: CheckpointMeta = {"step": own_step(found), "model": dataclasses.asdict(read.model)}
    return model.to(device).eval(), {**meta, "tokenizer": tokenizer} if tokenizer else meta

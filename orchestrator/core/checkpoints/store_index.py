"""Checkpoints in a store, as this side reasons about them: where they go, which are planned, what the index says.

Pure: asks no store. The machine writes the index (agent/checkpoints/store_index.py) into STORE/RUN/CHECKPOINTS.json.

Example::

    run_uri("s3://bucket/prefix", "quickstart-1120-k3f9qa")          # 's3://bucket/prefix/quickstart-1120-k3f9qa'
    read_index(content).newest(resumable=True).step
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import cast

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.errors import VerificationFailed
from orchestrator.core.safe_names import checked
from orchestrator.core.typed_json import decode, parse
from trainer.arithmetic import checkpoint_bytes
from trainer.contract import ModelConfig
from trainer.run_files import (
    EVENTS,
    LOG,
    MANIFEST_FILE,
    META_FILE,
    METRICS,
    MODEL_FILE,
    TRAINER_STATE_FILE,
    checkpoint_name,
)

INDEX = "CHECKPOINTS.json"
LOGS = (METRICS, EVENTS, LOG)
MOST_INDEX_BYTES = 16 << 20
GRANT_S = 6 * 86_400.0
"""For how long the machine's URLs are made: S3 allows seven days at most."""
SPARES = 4
"""Folders for unplanned saves: a stop, a limit, a preemption notice."""
SMALL_BYTES = 4 << 20


def planned_steps(steps: int, every: int) -> list[int]:
    """The steps at which the trainer saves, the last one included."""
    return sorted({*range(every, steps + 1, every), steps})


def planned_folders(steps: int, every: int) -> list[str]:
    """`step-000617` and so on."""
    return [checkpoint_name(step) for step in planned_steps(steps, every)]


def spare_folders() -> list[str]:
    return [f"spare-{number:02d}" for number in range(1, SPARES + 1)]


def file_sizes(model: ModelConfig, optimizer: str) -> dict[str, int]:
    """Files of a checkpoint, with sizes that they do not exceed."""
    weights = checkpoint_bytes(model, optimizer, weights_only=True)
    state = checkpoint_bytes(model, optimizer) - weights
    sizes = {MODEL_FILE: weights, TRAINER_STATE_FILE: state}
    return {**{name: int(1.02 * size) + SMALL_BYTES for name, size in sizes.items()},
            META_FILE: SMALL_BYTES, MANIFEST_FILE: SMALL_BYTES}  # fmt: skip


@dataclass(frozen=True)
class StoredCheckpoint:
    """One checkpoint that the store gave back whole. `files`: by name, the manifest too."""

    step: int
    folder: str
    files: Mapping[str, FileEntry]
    best: bool = False
    latest: bool = False

    @property
    def resumable(self) -> bool:
        """Whether it holds the optimizer's state; a best one alone may not."""
        return TRAINER_STATE_FILE in self.files

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.files.values())


@dataclass(frozen=True)
class StoreIndex:
    """What the store holds of a run. `ended`: the agent's exit record, once everything was there."""

    run: str
    checkpoints: tuple[StoredCheckpoint, ...] = ()
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    ended: ExitRecord | None = None

    def newest(self, *, resumable: bool = False) -> StoredCheckpoint | None:
        """The checkpoint of the highest step."""
        found = [each for each in self.checkpoints if each.resumable or not resumable]
        return max(found, key=lambda each: each.step, default=None)

    def named(self, name: str) -> StoredCheckpoint | None:
        """The checkpoint of that name, `step-000617`, or in that folder."""
        found = (each for each in self.checkpoints if name in (each.folder, checkpoint_name(each.step)))
        return next(found, None)


@dataclass(frozen=True)
class _Entry:
    """A checkpoint as the index lists it."""

    step: int
    folder: str
    files: Mapping[str, FileEntry]
    manifest_size_bytes: int
    manifest_sha256: str
    best: bool = False
    latest: bool = False


@dataclass(frozen=True)
class _Index:
    run: str
    checkpoints: tuple[_Entry, ...]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    ended: Mapping[str, object] | None = None


def read_index(content: bytes, where: str) -> StoreIndex:
    """The index object. Raises VerificationFailed for anything else, UserError for names that lead elsewhere."""
    try:
        index = decode(_Index, parse(content))
    except ValueError as error:
        raise VerificationFailed(
            f"{where}/{INDEX} is not an index of checkpoints: {error}", "name a checkpoint folder below it"
        ) from error
    checkpoints = tuple(_checkpoint(each, where) for each in index.checkpoints)
    ended = None if index.ended is None else cast(ExitRecord, index.ended)
    return StoreIndex(index.run, checkpoints, _checked(index.files, where), ended)


def _checkpoint(entry: _Entry, where: str) -> StoredCheckpoint:
    manifest = FileEntry(entry.manifest_size_bytes, entry.manifest_sha256)
    files = {**_checked(entry.files, where), MANIFEST_FILE: manifest}
    return StoredCheckpoint(entry.step, checked(entry.folder, where), files, entry.best, entry.latest)


def _checked(files: Mapping[str, FileEntry], where: str) -> dict[str, FileEntry]:
    return {checked(name, where): entry for name, entry in files.items()}


@dataclass(frozen=True)
class _Manifest:
    files: Mapping[str, FileEntry]


def of_manifest(step: int, folder: str, content: bytes, sha256: str, where: str) -> StoredCheckpoint:
    """A checkpoint that no index names, from its own MANIFEST.json."""
    try:
        listed = decode(_Manifest, parse(content)).files
    except ValueError as error:
        raise VerificationFailed(f"{where}/{MANIFEST_FILE} is not a manifest: {error}") from error
    files = {**_checked(listed, where), MANIFEST_FILE: FileEntry(len(content), sha256)}
    return StoredCheckpoint(step, folder, files, latest=True)


def shape_differences(found: Mapping[str, object], wanted: ModelConfig) -> list[str]:
    """`n_layer is 12, the recipe wants 6`: the keys in which a checkpoint's model is another one. Dropout and the
    initial weights are not part of its shape."""
    same = ("dropout", "init", "zero_init")
    before = {key: found.get(key, value) for key, value in asdict(ModelConfig()).items()}  # of an earlier version
    return [
        f"{key} is {before[key]}, the recipe wants {value}"
        for key, value in asdict(wanted).items()
        if key not in same and before[key] != value
    ]

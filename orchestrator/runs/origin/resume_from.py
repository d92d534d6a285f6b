"""Where `--resume-from` leads: a checkpoint of another run, here or in a store, found and checked before anything is
bought. It must not move it; sync does.

Example::

    origin = find(ledger, "chinchilla-1120-k3f9qa", storage.of)  # or s3://bucket/prefix/RUN[/step-000617], or a folder
    check_shape(origin, recipe.model.config())
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.checkpoints import store_index, store_places
from orchestrator.core.checkpoints.file_entry import FileEntry
from orchestrator.core.checkpoints.store_index import StoredCheckpoint
from orchestrator.core.errors import GptctlError, StorageError, UserError, VerificationFailed
from orchestrator.core.facts.origin import Lineage
from orchestrator.core.ports import Storage
from orchestrator.core.typed_json import decode, parse
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from trainer.contract import ModelConfig
from trainer.run_files import (
    BEST,
    CHECKPOINTS,
    LATEST,
    MANIFEST_FILE,
    META_FILE,
    MODEL_FILE,
    TRAINER_STATE_FILE,
    checkpoint_name,
    checkpoint_step,
)

StorageOf = Callable[[str], Storage]


@dataclass(frozen=True)
class Origin:
    """A checkpoint to resume from."""

    place: str
    """Its folder on this side, or its URI."""
    step: int
    files: Mapping[str, FileEntry]
    """By name, the manifest too."""
    model: Mapping[str, object]
    """The model as its meta.json describes it."""
    tokens: int | None = None
    """Steps times tokens per step, as its meta.json has it."""
    lineage: Lineage | None = None
    """What it says of its own history; None from a version before 0.2.0."""


@dataclass(frozen=True)
class Wanted:
    """What looks for a checkpoint: for messages, and whether weights alone will do."""

    key: str = "--resume-from"
    weights_alone: bool = False

    def takes(self, files: Mapping[str, FileEntry]) -> bool:
        return self.weights_alone or TRAINER_STATE_FILE in files

    def only(self, files: Mapping[str, FileEntry]) -> Mapping[str, FileEntry]:
        """The files that have to move."""
        kept = (MODEL_FILE, META_FILE, MANIFEST_FILE)
        return {name: entry for name, entry in files.items() if name in kept} if self.weights_alone else files


TO_RESUME = Wanted()


def find(ledger: Ledger, wanted: str, storage_of: StorageOf, how: Wanted = TO_RESUME) -> Origin:
    """The newest checkpoint of what was named that training can resume from; of weights alone the best. `RUN@STEP` is
    that step of a run. Raises UserError when there is none."""
    if "://" in wanted:
        return _in_store(wanted.rstrip("/"), storage_of, how)
    folder = Path(wanted).expanduser()
    if folder.is_file() and (folder.parent / MANIFEST_FILE).is_file():
        return _in_folder(folder.parent, how)  # a checkpoint's file stands for the checkpoint
    if "/" in wanted or folder.is_dir():
        return _in_folder(folder, how)
    name, at, step = wanted.rpartition("@")
    if at and step.isascii() and step.isdigit():
        run = ledger.find_run(name)
        place = ledger.home / "runs" / run.id / CHECKPOINTS / checkpoint_name(int(step))
        if not place.is_dir():
            raise UserError(f"{how.key} {wanted}: step {step} is not here", f"gptctl fetch {run.id} --step {int(step)}")
        return _in_folder(place, how)
    return _of_run(ledger, ledger.find_run(wanted), storage_of, how)


def check_shape(origin: Origin, wanted: ModelConfig, how: Wanted = TO_RESUME) -> None:
    """Raises UserError naming every key in which the model is another one."""
    different = store_index.shape_differences(origin.model, wanted)
    if different:
        raise UserError(
            f"{how.key} {origin.place}: its model is another one: {'; '.join(different)}",
            "use the recipe it was made by, or correct these keys with --set model.KEY=VALUE",
        )


def _of_run(ledger: Ledger, run: RunRecord, storage_of: StorageOf, how: Wanted) -> Origin:
    """The mirror's newest, or the store's, where that is newer."""
    found: list[Origin] = []
    trouble = ""
    with suppress(UserError):
        found.append(_in_folder(ledger.home / "runs" / run.id, how))
    store = run.host_data.get("checkpoint_store")
    if store and not (found and how.weights_alone):
        try:
            found.append(_in_store(store_places.run_uri(store, run.id), storage_of, how))
        except GptctlError as error:
            trouble = f"; {error.message}"
    if not found:
        raise UserError(f"{run.id} has no checkpoint here to resume from{trouble}", f"gptctl fetch {run.id}")
    return max(found, key=lambda each: each.step)


def _in_folder(folder: Path, how: Wanted) -> Origin:
    """A checkpoint's folder, or a run's: then its newest; of weights alone its best."""
    names = (BEST, LATEST) if how.weights_alone else (LATEST, BEST)
    links = [folder / CHECKPOINTS / name for name in names]
    places = [path for path in (folder, *links) if (path / MANIFEST_FILE).is_file()]
    for path in places:
        files = _listed(path)
        if how.takes(files):
            meta = read_meta(_content(path / META_FILE), str(path))
            return _origin(str(path.resolve()), meta.step, files, meta, how)
    what = (
        f"has no {TRAINER_STATE_FILE}: weights alone"
        if places
        else "is neither a checkpoint nor a run's folder with one"
    )
    raise UserError(f"{how.key} {folder}: it {what}", "name a run, a checkpoint's folder or s3://BUCKET/PREFIX/RUN")


def _origin(place: str, step: int, files: Mapping[str, FileEntry], meta: _Meta, how: Wanted) -> Origin:
    return Origin(place, step, how.only(files), meta.model, meta.tokens, meta.lineage)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}", "fetch the checkpoint again") from error


def _listed(folder: Path) -> Mapping[str, FileEntry]:
    content = (folder / MANIFEST_FILE).read_bytes()
    step = checkpoint_step(folder.resolve().name) or 0
    try:
        found = store_index.of_manifest(step, folder.name, content, hashlib.sha256(content).hexdigest(), str(folder))
    except VerificationFailed as error:
        raise UserError(error.message, "fetch it again") from error
    return found.files


@dataclass(frozen=True)
class _Meta:
    """meta.json of a checkpoint, as far as a resume needs it."""

    step: int = 0
    model: Mapping[str, object] = field(default_factory=dict)
    tokens: int | None = None
    lineage: Lineage | None = None


def read_meta(content: bytes, where: str) -> _Meta:
    """A checkpoint's meta.json. Raises UserError for anything else."""
    try:
        return decode(_Meta, parse(content))
    except ValueError as error:
        raise UserError(f"{where}/{META_FILE} cannot be read: {error}", "fetch the checkpoint again") from error


def _in_store(uri: str, storage_of: StorageOf, how: Wanted) -> Origin:
    """A run's folder in a store, or one checkpoint of it."""
    storage = storage_of(uri)
    place, checkpoint = _chosen(uri, storage)
    if not how.takes(checkpoint.files):
        raise UserError(f"{how.key} {place}: it has no {TRAINER_STATE_FILE}: weights alone", "name another step")
    meta = read_meta(storage.read(f"{place}/{META_FILE}", 0, store_index.SMALL_BYTES), place)
    return _origin(place, meta.step or checkpoint.step, checkpoint.files, meta, how)


def _chosen(uri: str, found: Storage) -> tuple[str, StoredCheckpoint]:
    """(URI of the checkpoint's folder, what is in it). Raises UserError naming what there is."""
    with suppress(StorageError):
        index = store_index.read_index(found.read(f"{uri}/{store_index.INDEX}", 0, store_index.MOST_INDEX_BYTES), uri)
        newest = index.newest(resumable=True)
        if newest is None:
            raise UserError(f"--resume-from {uri}: no checkpoint is there yet", "gptctl status shows the safe step")
        return f"{uri}/{newest.folder}", newest
    above, _, name = uri.rpartition("/")
    with suppress(StorageError):
        index = store_index.read_index(
            found.read(f"{above}/{store_index.INDEX}", 0, store_index.MOST_INDEX_BYTES), above
        )
        named = index.named(name)
        if named is None:
            there = ", ".join(str(each.step) for each in index.checkpoints) or "none"
            raise UserError(f"--resume-from {uri}: no such checkpoint; steps there: {there}", "name one")
        return f"{above}/{named.folder}", named
    try:
        content = found.read(f"{uri}/{MANIFEST_FILE}", 0, store_index.SMALL_BYTES)
    except StorageError as error:
        if not error.missing:
            raise
        raise UserError(
            f"--resume-from {uri}: neither {store_index.INDEX} nor {MANIFEST_FILE} is there",
            "name a run's folder in its store, s3://BUCKET/PREFIX/RUN, or a checkpoint's",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    return uri, store_index.of_manifest(checkpoint_step(name) or 0, name, content, digest, uri)

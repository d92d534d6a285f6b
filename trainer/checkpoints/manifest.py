"""What a checkpoint folder says about itself, read and verified without torch: MANIFEST.json, sha256, meta.json.

checkpoint.py writes such folders and loads their tensors; programs without torch, such as the export, use this module.
It must not know what a tensor is.

Example::

    folder = checkpoint_folder(Path("runs/quickstart"))       # its best checkpoint, else its latest
    files = verify(folder, only=("model.safetensors", "meta.json"))
    shape = read_meta(folder)["model"]
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from trainer.config.task_config import TaskConfig, task_from
from trainer.contract import DataConfig
from trainer.run_files import BEST, CHECKPOINTS, LATEST, MANIFEST_FILE, META_FILE, CheckpointMeta, ManifestEntry

HASH_BLOCK_BYTES = 4 * 1024**2


class CheckpointError(ValueError):
    """A checkpoint that is damaged, incomplete, foreign or missing. Names the folder, the file and what is wrong."""


def read_manifest(folder: Path) -> dict[str, ManifestEntry]:
    """The files of MANIFEST.json: {name: {"size_bytes", "sha256"}}. Raises CheckpointError."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.name}: no readable {MANIFEST_FILE} ({error})") from error
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise CheckpointError(f"{folder.name}: {MANIFEST_FILE} does not list plain files with size_bytes and sha256")
    return files


def _is_entry(name: str, entry: object) -> bool:
    """A name with a path in it would let a foreign manifest read outside its folder."""
    return Path(name).name == name and isinstance(entry, dict) and {"size_bytes", "sha256"} <= entry.keys()


def verify(folder: Path, only: Collection[str] | None = None) -> dict[str, ManifestEntry]:
    """Reads every listed file, or `only` these, and compares size and sha256; returns the list.

    Raises CheckpointError, also where one of `only` is not listed. 2 GB take about 2 seconds. Files that are not listed
    are ignored.
    """
    files = read_manifest(folder)
    for name in sorted(set(only or ()) - files.keys()):
        raise CheckpointError(f"{folder.name}: its {MANIFEST_FILE} does not list {name}")
    for name, entry in files.items():
        if only is not None and name not in only:
            continue
        try:
            with (folder / name).open("rb") as file:
                size, digest = os.fstat(file.fileno()).st_size, sha256_of(file)
        except OSError as error:
            raise CheckpointError(f"{folder.name}: {name} cannot be read: {error.strerror or error}") from error
        if size != entry["size_bytes"]:
            raise CheckpointError(f"{folder.name}: {name} has {size} bytes, its manifest says {entry['size_bytes']}")
        if digest != entry["sha256"]:
            raise CheckpointError(f"{folder.name}: {name} does not have the sha256 of its manifest: it is damaged")
    return files


def sha256_of(file: BufferedIOBase) -> str:
    """Digest of the rest of an open file. Own code: hashlib.file_digest needs Python 3.11, and machines have 3.10."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(HASH_BLOCK_BYTES))  # reused: new ones would cost half as much as the hashing
    while length := file.readinto(block):
        digest.update(block[:length])
    return digest.hexdigest()


def read_meta(folder: Path) -> CheckpointMeta:
    """meta.json of a checkpoint. Raises CheckpointError."""
    try:
        meta = json.loads((folder / META_FILE).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder.name}: no readable {META_FILE} ({error})") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{folder.name}: {META_FILE} is not an object")
    return cast(CheckpointMeta, meta)


def tokenizer_name(meta: CheckpointMeta, override: str | None = None) -> str:
    """The tokenizer to read this checkpoint's text with: `override`, else what meta.json names, else the default."""
    return override or meta.get("tokenizer") or DataConfig.tokenizer


def task_of(meta: CheckpointMeta) -> TaskConfig:
    """What the model was trained for. Raises CheckpointError for a task of another version."""
    try:
        return task_from(meta["task"]) if "task" in meta else TaskConfig()
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{META_FILE} describes a task that this version does not know: {error}") from error


def checkpoint_folder(path: Path) -> Path:
    """The checkpoint at path: the folder itself, or a run folder's best, else its latest. Raises CheckpointError."""
    candidates = (path, path / CHECKPOINTS / BEST, path / CHECKPOINTS / LATEST)
    for folder in candidates:
        if (folder / MANIFEST_FILE).is_file():
            return folder.resolve()
    raise CheckpointError(f"{path}: neither a checkpoint ({MANIFEST_FILE} in it) nor a run folder that has one")

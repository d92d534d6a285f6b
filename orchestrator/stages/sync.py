"""Sync: the trainer's source and the data are on the machine, every byte verified. Sends only what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.core import shards as token_shards
from orchestrator.core.shards import Dataset, Shard
from orchestrator.core.slices import validation_slice
from orchestrator.remote import transfer
from orchestrator.remote.landing import landing
from orchestrator.stages.context import RunContext
from orchestrator.stages.origin import place_checkpoint
from orchestrator.stages.prepare import prepared_folder
from orchestrator.stages.progress import progress
from orchestrator.stages.staging import pull_dataset, push_cut
from trainer import contract


def sync(context: RunContext) -> None:
    """Leaves `source` (PYTHONPATH there), `data` (DataConfig fields) and `dataset` (what it is) in the run's record."""
    source = _push_trainer(context)
    data = place_data(context)
    resume_from = place_checkpoint(context)
    context.note(source=source, data=data, resume_from_there=resume_from)


def source_digest(package: Path) -> str:
    """Names and contents of the trainer's source files, 16 hex digits of a sha256."""
    whole = hashlib.sha256()
    for name in source_files(package):
        whole.update(name.encode() + b"\0" + (package / name).read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def source_files(package: Path) -> list[str]:
    """The trainer's modules, sorted."""
    return sorted(path.name for path in package.glob("*.py"))


def _push_trainer(context: RunContext) -> str:
    package = Path(contract.__file__).parent
    folder = f"{context.agent.root}/src/{source_digest(package)}"
    report = transfer.push_tree(
        context.shell, package, f"{folder}/trainer", source_files(package), progress(context, "trainer source")
    )
    context.say(f"trainer source: {report.files_sent} files sent ({report.way})")
    return folder


def place_data(context: RunContext) -> dict[str, object]:
    """Where the files are on the machine, and what of them is read, as fields of the trainer's DataConfig."""
    source = context.recipe.data.source or ""
    if context.recipe.data.prepare is None and "://" in source:
        return pull_dataset(context, source)
    folder = prepared_folder(context) if context.recipe.data.prepare else Path(source).expanduser()
    dataset = token_shards.resolve(folder)
    digest = _dataset_digest(context, _all(dataset))
    context.note(dataset=token_shards.described(dataset, digest))
    if context.shell.openssh() is None:
        return _in_place(context, dataset, {shard: str(shard.path.resolve()) for shard in _all(dataset)})
    cut = push_cut(context, folder, dataset, lambda path, digest: _push(context, path, digest))
    if cut is not None:
        return cut
    return _in_place(context, dataset, {shard: _push(context, shard.path, digest) for shard in _all(dataset)})


def _all(dataset: Dataset) -> tuple[Shard, ...]:
    return dataset.train + dataset.validation


def _in_place(context: RunContext, dataset: Dataset, places: Mapping[Shard, str]) -> dict[str, object]:
    """The whole files, read where they are."""
    start, tokens = validation_slice(context.recipe, dataset.train_tokens, dataset.validation_tokens)
    return {
        "train_files": [places[shard] for shard in dataset.train],
        "validation_files": [places[shard] for shard in dataset.validation],
        "validation_start_token": start,
        "validation_tokens": tokens,
    }


def _push(context: RunContext, path: Path, digest: str) -> str:
    """Sends a file into the folder of its digest, unless it is there."""
    folder = context.host.data_folder or context.agent.root
    destination = f"{folder}/data/{digest}/{path.name}"
    transfer.push_file(context.shell, path, destination, progress(context, path.name))
    return destination


def _dataset_digest(context: RunContext, shards: tuple[Shard, ...]) -> str:
    cache = context.home / "data-digests.json"
    known = json.loads(cache.read_text()) if cache.is_file() else {}
    before = len(known)
    digest = token_shards.digest(shards, known)
    if len(known) != before:
        with landing(cache) as file:
            file.write(json.dumps(known, indent=1).encode())
    return digest

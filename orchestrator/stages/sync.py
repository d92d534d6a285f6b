"""Sync: the trainer's source and the data are on the machine, every byte verified. Sends only what is missing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from orchestrator.core import shards as token_shards
from orchestrator.core.errors import UserError
from orchestrator.core.shards import Dataset, Shard
from orchestrator.remote import transfer
from orchestrator.remote.landing import landing
from orchestrator.stages.context import RunContext
from orchestrator.stages.origin import place_checkpoint
from orchestrator.stages.prepare import prepared_folder
from orchestrator.stages.progress import progress
from trainer import contract

MAX_HELD_OUT_TOKENS = 10_000_000
HELD_OUT_FRACTION = 0.01


def sync(context: RunContext) -> None:
    """Leaves `source` (PYTHONPATH there), `data` (DataConfig fields) and `dataset` (what it is) in the run's record."""
    source = _push_trainer(context)
    dataset = _dataset(context)
    data = _place_dataset(context, dataset)
    resume_from = place_checkpoint(context)
    known = token_shards.described(dataset, _dataset_digest(context, dataset.train + dataset.validation))
    context.note(source=source, data=data, dataset=known, resume_from_there=resume_from)


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


def _dataset(context: RunContext) -> Dataset:
    recipe = context.recipe
    if recipe.data.prepare is not None:
        return token_shards.resolve(prepared_folder(context))
    source = recipe.data.source or ""
    if "://" in source:
        raise UserError(
            f"data.source: {source} can be planned with, not yet fetched: only files of this computer can",
            "download the token files, then: --set data.source=FOLDER",
        )
    return token_shards.resolve(Path(source).expanduser())


def _place_dataset(context: RunContext, dataset: Dataset) -> dict[str, object]:
    """Where the files are on the machine, and the validation slice, as fields of the trainer's DataConfig."""
    shards = dataset.train + dataset.validation
    if context.shell.openssh() is None:
        places = {shard: str(shard.path.resolve()) for shard in shards}
    else:
        folder = f"{context.agent.root}/data/{_dataset_digest(context, shards)}"
        places = {shard: _push_shard(context, shard, folder) for shard in shards}
    return {
        "train_files": [places[shard] for shard in dataset.train],
        "validation_files": [places[shard] for shard in dataset.validation],
        **_validation_slice(context, dataset),
    }


def _push_shard(context: RunContext, shard: Shard, folder: str) -> str:
    destination = f"{folder}/{shard.path.name}"
    transfer.push_file(context.shell, shard.path, destination, progress(context, shard.path.name))
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


def _validation_slice(context: RunContext, dataset: Dataset) -> dict[str, object]:
    """The recipe's slice; without one, the validation files whole, or the last 1 % (10 M at most) of the stream."""
    chosen = context.recipe.data.validation
    available = dataset.validation_tokens or dataset.train_tokens
    if chosen is None:
        whole = dataset.validation_tokens or int(dataset.train_tokens * HELD_OUT_FRACTION)
        return {"validation_start_token": 0, "validation_tokens": min(whole, MAX_HELD_OUT_TOKENS)}
    if chosen.start_token + chosen.tokens > available:
        raise UserError(
            f"data.validation: tokens {chosen.start_token} to {chosen.start_token + chosen.tokens} "
            f"are beyond the {available} there are",
            f"set data.validation.tokens to at most {max(available - chosen.start_token, 0)}",
        )
    return {"validation_start_token": chosen.start_token, "validation_tokens": chosen.tokens}

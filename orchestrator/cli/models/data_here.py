"""Which token files on this computer are the ones that a run validated on. Never asks after a path of another machine.

Example: `data_here(run)` -> [Path("data/books/validation.safetensors")], or None: measure on its machine
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from orchestrator.core.config.inventory import LOCAL
from orchestrator.core.datasets import local_dataset
from orchestrator.core.errors import UserError
from orchestrator.ledger.records import RunRecord


def data_here(run: RunRecord) -> list[Path] | None:
    """The files it validated on, else trained on: those it read here, those that were cut or sent from here and are
    still the same. None where they are elsewhere."""
    if run.facts.synced is None:
        return None
    known = run.facts.synced.data
    files = known.validation_files or known.train_files
    if run.host_data.get("provider") == LOCAL:
        found = [Path(file) for file in files]
    else:
        found = _sent_from_here(run, [PurePosixPath(file).name for file in files])
    return found if found and all(file.is_file() for file in found) else None


def _sent_from_here(run: RunRecord, names: Sequence[str]) -> list[Path]:
    """The originals of files that were sent; none where one is missing or is not what it was."""
    if cut := run.facts.data_cut:
        paths = {Path(each.path).name: Path(each.path) for each in cut.values()}
    else:
        paths = _originals(run)
    return [paths[name] for name in names] if paths.keys() >= {*names} else []


def _originals(run: RunRecord) -> dict[str, Path]:
    """The shards of `data.source` by name, if they are a folder here with the very content that was sent."""
    source, sent = run.recipe_data["data"].get("source"), run.facts.dataset
    if not source or sent is None or "://" in source:
        return {}
    try:
        dataset = local_dataset.resolve(Path(source).expanduser())
        shards = dataset.train + dataset.validation
        same = local_dataset.digest(shards, {}) == sent.digest
    except (OSError, UserError):
        return {}
    return {shard.path.name: shard.path for shard in shards} if same else {}

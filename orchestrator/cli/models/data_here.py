"""Which token files on this computer are the ones that a run validated on. Never asks after a path of another machine.

Example: `data_here(run)` -> [Path("data/books/validation.safetensors")], or None: measure on its machine
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator import storage
from orchestrator.core.config.inventory import LOCAL
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.datasets import local_dataset
from orchestrator.core.errors import GptctlError
from orchestrator.datasets.remote_dataset import open_dataset
from orchestrator.ledger.records import RunRecord


def data_here(run: RunRecord) -> list[Path] | None:
    """The files it validated on, else trained on: those it read here, those that were cut or sent from here and are
    still the same. None where they are elsewhere."""
    if run.facts.synced is None:
        return None
    known = run.facts.synced.data
    files = known.validation_files or known.train_files
    is_local = run.host_data.get("provider") == LOCAL
    found = [Path(file) for file in files] if is_local else _sent_from_here(run, files)
    return found if found and all(file.is_file() for file in found) else None


def _sent_from_here(run: RunRecord, far: Sequence[str]) -> list[Path]:
    """The originals of files that were sent; none where one is missing or is not what it was."""
    if cut := run.facts.data_cut:
        paths = {Path(each.path).name: Path(each.path) for each in cut.values()}
    else:
        paths = _originals(run)
    # A shard keeps its name below the source, folders and all, at the end of its path there.
    names = [max((name for name in paths if file.endswith(f"/{name}")), key=len, default="") for file in far]
    return [paths[name] for name in names] if all(names) else []


def _originals(run: RunRecord) -> dict[str, Path]:
    """The shards of `data.source` by name, if they are a folder here with the very content that was sent."""
    source, sent = run.recipe_data["data"].get("source"), run.facts.dataset
    if not source or sent is None or "://" in source:
        return {}
    try:
        folder = str(Path(source).expanduser())
        found = open_dataset(storage.of(folder), Recipe.from_resolved(run.recipe_data), folder)
        paths = [(each.file.name, Path(each.file.uri)) for each in found.files]
        same = local_dataset.digest(paths, {}) == sent.digest
    except (OSError, GptctlError):
        return {}
    return dict(paths) if same else {}

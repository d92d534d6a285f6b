"""Where `model.init_from` leads: weights alone, for step 0 of a new run, found, and imported where they are foreign,
before anything is bought. It must not move them; sync does.

Example: `find(ledger, "gpt2", storage.of, importer)` -> its checkpoint, of which only the weights move
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from orchestrator import storage
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.runs.origin import resume_from
from orchestrator.runs.origin.imports import HUB, HUB_MODELS, imported_from
from orchestrator.runs.origin.resume_from import Origin, StorageOf, Wanted
from trainer.run_files import MANIFEST_FILE

KEY = "model.init_from"
MODEL_OF_HUB = re.compile(r"hf://(?:models/)?[\w.-]+/[\w.-]+(?:@[\w.%+-]+)?/?")
Importer = Callable[[str], RunRecord]
"""Imports a source as a new run."""


def is_foreign(wanted: str) -> bool:
    """Whether it is a model of the Hub, or a folder or file here that is not a checkpoint of this trainer."""
    if "://" in wanted:
        return MODEL_OF_HUB.fullmatch(wanted) is not None
    path = Path(wanted).expanduser()
    if not path.exists() or ("/" not in wanted and not path.is_dir()):
        return False
    checkpoint = any(
        (path / below / MANIFEST_FILE).is_file() for below in (".", "checkpoints/best", "checkpoints/latest")
    )
    return not checkpoint and not (path.parent / MANIFEST_FILE).is_file()


def find(ledger: Ledger, wanted: str, storage_of: StorageOf, import_: Importer) -> Origin:
    """The checkpoint whose weights a run begins with. Raises UserError when there is none."""
    if is_foreign(wanted):
        run = earlier(ledger, wanted) or import_(wanted)
        wanted = run.id
    return resume_from.find(ledger, wanted, storage_of, Wanted(KEY, weights_alone=True))


def earlier(ledger: Ledger, source: str) -> RunRecord | None:
    """The import of these very bytes, where there was one: of the Hub by its commit, of a path by its sha256."""
    if "://" not in source:
        path = Path(source).expanduser().absolute()
        return imported_from(ledger, str(path), lambda files: _same(path, files))
    uri = f"{HUB_MODELS}{source.removeprefix(HUB).removeprefix('models/')}".rstrip("/")
    commit = next((each.version for each in storage.of(uri).manifest(uri) if each.version), "")
    return imported_from(ledger, f"{uri.partition('@')[0]}@{commit}", lambda files: True)


def _same(path: Path, files: dict[str, str]) -> bool:
    folder = path.parent if path.is_file() else path
    for name, digest in files.items():
        found = next(
            (place for place in (folder / name, folder / "checkpoints" / "latest" / name) if place.is_file()), None
        )
        if found is None:
            return False
        with found.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                return False
    return True

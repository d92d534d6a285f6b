"""A checkpoint on its way to this GPTCTL_HOME: its files gather beside, and take their place as a whole.

Of one step there may be two, where it was trained twice: their files must never mix.

Example::

    coming = incoming(home, "runs/tiny-1130-k3f9qa/checkpoints/step-000600", sha256)
    arrive(coming, home / "runs/tiny-1130-k3f9qa/checkpoints/step-000600")
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from orchestrator.cli.open_ledger import open_ledger
from orchestrator.core.checkpoints.store_index import of_manifest
from orchestrator.core.errors import UserError, VerificationFailed
from orchestrator.ledger.identity import is_id
from trainer import run_files

FOLDER = "incoming"
PLACE = re.compile(r"runs/[a-z0-9-]{1,40}(/(checkpoints|from)/step-[0-9]{1,12})?")
"""What a giver may name, below GPTCTL_HOME."""


def incoming(home: Path, folder: str, manifest_sha256: str) -> Path:
    """Where the files of the checkpoint with this manifest gather; its files survive an interruption."""
    coming = home / FOLDER / hashlib.sha256(f"{folder} {manifest_sha256}".encode()).hexdigest()[:16] / Path(folder).name
    coming.mkdir(mode=0o700, parents=True, exist_ok=True)
    return coming


def arrive(coming: Path, destination: Path) -> None:
    """Puts it in its place, in that of another one of the same step. Raises VerificationFailed, and drops it, where a
    file is not what its manifest promises."""
    try:
        _verify(coming)
    except VerificationFailed:
        shutil.rmtree(coming.parent)
        raise
    before = coming.with_name("before")
    destination.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if destination.exists():
        shutil.rmtree(before, ignore_errors=True)
        os.rename(destination, before)
    os.rename(coming, destination)
    shutil.rmtree(coming.parent)


def manifest_sha256(folder: Path) -> str | None:
    """Of the checkpoint in this folder; None without one."""
    path = folder / run_files.MANIFEST_FILE
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def sizes(folder: Path) -> dict[str, int]:
    """Bytes by name."""
    return {each.name: each.stat().st_size for each in folder.iterdir() if each.is_file()} if folder.is_dir() else {}


def _verify(folder: Path) -> None:
    """Each file that is there; a run's folder may have the weights alone."""
    content = (folder / run_files.MANIFEST_FILE).read_bytes()
    promised = of_manifest(0, folder.name, content, hashlib.sha256(content).hexdigest(), folder.name)
    for name, entry in promised.files.items():
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    raise VerificationFailed(f"{folder.name}/{name} is not what its manifest promises")


# There, on the driver


def receive(run_id: str, below: str, sha256: str) -> int:
    """Says where the files of a checkpoint go, and which are here; puts it in its place once its manifest came. Without
    a digest it is the run's own folder. What this ledger drives is newer than what would come."""
    with open_ledger() as ledger:
        if not (is_id(run_id) and PLACE.fullmatch(below)):
            raise UserError(f"not a place of a checkpoint: {below!r}")
        drives = any(run.id == run_id and run.facts.driven_by is None for run in ledger.runs())
        into = ledger.home / below if drives else _into(ledger.home, below, sha256)
        free_bytes = shutil.disk_usage(ledger.home).free
    print(json.dumps({"drives": drives, "into": str(into), "files": sizes(into), "free_bytes": free_bytes}))
    return 0


def _into(home: Path, below: str, sha256: str) -> Path:
    place = home / below
    if not sha256:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return place
    if manifest_sha256(place) == sha256:
        return place
    coming = incoming(home, below, sha256)
    if manifest_sha256(coming) != sha256:
        return coming
    arrive(coming, place)
    return place

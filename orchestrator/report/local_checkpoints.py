"""The checkpoints in a run folder or its mirror, by their manifests.

It hashes manifests, not weights: fetch compared every file with its sha256 before the folder got its name, and reading
gigabytes again would make the report the slowest stage. It compares sizes, so a file lost since then shows.

    for checkpoint in read_checkpoints(mirror / "checkpoints"):
        print(checkpoint.step, checkpoint.size_bytes, checkpoint.complete)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.typed_json import parse
from trainer.run_files import BEST, LATEST, MANIFEST_FILE, checkpoint_step


@dataclass(frozen=True)
class Checkpoint:
    """One `step-...` folder with a manifest."""

    step: int
    path: Path
    size_bytes: int
    """Of all files in the manifest."""
    manifest_sha256: str
    complete: bool
    """Whether every file of the manifest is here at full size."""
    best: bool = False
    latest: bool = False


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """By step. Omits temporary folders and those without a readable manifest, which were never finished."""
    if not folder.is_dir():
        return []
    best, latest = _target(folder / BEST), _target(folder / LATEST)
    found = []
    for path in folder.iterdir():
        step = checkpoint_step(path.name)
        if step is None or path.is_symlink():
            continue
        sizes, digest = _manifest(path / MANIFEST_FILE)
        if sizes is not None:
            complete = all(_has(path / name, size) for name, size in sizes.items())
            total = sum(sizes.values())
            found.append(Checkpoint(step, path, total, digest, complete, path.name == best, path.name == latest))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _manifest(path: Path) -> tuple[Mapping[str, int] | None, str]:
    """Sizes in bytes by file name, and the manifest's own sha256; None if it cannot be read."""
    try:
        text = path.read_bytes()
        sizes = {str(name): int(entry["size_bytes"]) for name, entry in parse(text)["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None, ""
    return sizes, hashlib.sha256(text).hexdigest()


def _has(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _target(link: Path) -> str | None:
    return link.readlink().name if link.is_symlink() else None

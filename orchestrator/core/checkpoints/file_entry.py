"""A file of a checkpoint, as a manifest or an index lists it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FileEntry:
    """The size and digest that the bytes must have."""

    size_bytes: int
    sha256: str

"""What a driver says that a run's folder has: checked before a name of it becomes a path here.

Example: `listing({"run": "tiny-1130-k3f9qa", "ended": True, "folder": "/d/runs/tiny", "files": [["a.log", 3, null]]})`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.core.errors import CommandFailed

RUN = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class Listed:
    """A file; of a link the name that it points to in its own folder."""

    name: str
    size_bytes: int
    link: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a run."""

    run: str
    ended: bool
    folder: str
    files: tuple[Listed, ...]


def listing(said: Mapping[str, object]) -> Listing:
    """Raises CommandFailed for what `gptctl driver files` does not print, and for a name that leads elsewhere."""
    run, ended, folder, files = (said.get(name) for name in ("run", "ended", "folder", "files"))
    if not (isinstance(run, str) and RUN.fullmatch(run) and isinstance(folder, str) and isinstance(files, list)):
        raise CommandFailed(f"the driver lists no files of a run: {str(said)[:200]}", "gptctl check HOST --driver")
    return Listing(run, ended is True, folder, tuple(_listed(each) for each in files))


def _listed(said: object) -> Listed:
    name, size_bytes, link = said if isinstance(said, list) and len(said) == 3 else (None, None, None)
    if not isinstance(name, str) or type(size_bytes) is not int or not isinstance(link, str | None):
        raise CommandFailed(f"the driver lists what is not a file: {str(said)[:200]}", "gptctl check HOST --driver")
    path, target = PurePosixPath(name), None if link is None else PurePosixPath(link).name
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name or target in ("", ".."):
        raise CommandFailed(f"the driver names a file outside of its run: {str(said)[:200]}", "name another --driver")
    return Listed(name, size_bytes, target)

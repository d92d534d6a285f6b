"""The one rule for names that come from elsewhere (a listing, a manifest, a machine) and become paths or ids here.

Pure. Example: `checked("shards/train-00.bin", "hf://gpjt/x")` -> the same; `checked("../x", ...)` raises UserError
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.ports import StoredFile

MOST_CHARACTERS = 512
ID = r"[a-z0-9-]{1,40}"
"""Ids of runs and rentals: safe as folder names, SSH arguments and machine names on every cloud."""
WILD = re.compile(r"[*?\[]")


def stays_inside(name: str, *, plain: bool = True, most_bytes: int | None = None) -> bool:
    """Whether a relative name (`/` between folders) leads nowhere but below its folder. `plain`: it also prints as one
    line and means the same on every system. `most_bytes`: its longest encoding in UTF-8."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        return False
    if plain and (not name.isprintable() or "\\" in name):
        return False
    return most_bytes is None or len(name.encode("utf-8", "surrogateescape")) <= most_bytes


def checked(name: str, where: str) -> str:
    """The name, if it stays inside the folder it was listed for. Raises UserError."""
    if not stays_inside(name) or len(name) > MOST_CHARACTERS:
        raise UserError(
            f"{where} lists {name[:80]!r}, which leads out of its folder or is not a plain name",
            "do not use this source: its listing is wrong or hostile",
        )
    return name


def matching(files: Sequence[StoredFile], pattern: str, where: str) -> list[StoredFile]:
    """The files whose name fits a glob pattern; `*` does not cross a `/`. Raises StorageError when none does."""
    depth = pattern.count("/")
    fitting = [each for each in files if each.name.count("/") == depth and fnmatch.fnmatchcase(each.name, pattern)]
    if not fitting:
        some = ", ".join(each.name for each in files[:5]) or "nothing"
        raise StorageError(f"{where}: no file matches; there are: {some}", "correct the pattern", missing=True)
    return fitting


def split_uri(uri: str, scheme: str) -> tuple[str, str]:
    """`s3://bucket/a/b` as ("bucket", "a/b"). Raises UserError without a first part."""
    first, _, rest = uri.removeprefix(f"{scheme}://").partition("/")
    if not first:
        raise UserError(f"{uri}: names nothing", f"write it as {scheme}://NAME/PATH")
    return first, rest.strip("/")

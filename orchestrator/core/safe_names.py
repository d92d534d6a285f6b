"""Names that come from elsewhere (a listing, a manifest, a dataset.json) before anybody makes a path of them.

Pure. Example: `checked("shards/train-00.bin", "hf://gpjt/x")` -> the same; `checked("../x", ...)` raises UserError
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.ports import StoredFile

MOST_CHARACTERS = 512
WILD = re.compile(r"[*?\[]")


def checked(name: str, where: str) -> str:
    """The name, if it leads nowhere but below the folder it was listed for. Raises UserError."""
    parts = name.split("/")
    strange = any(part in ("", ".", "..") for part in parts) or not name.isprintable() or "\\" in name
    if strange or len(name) > MOST_CHARACTERS:
        raise UserError(
            f"{where} lists {name[:80]!r}, which leads out of its folder or is no plain name",
            "do not use this source: whoever made its listing made a mistake, or means harm",
        )
    return name


def matching(files: Sequence[StoredFile], pattern: str, where: str) -> list[StoredFile]:
    """The files whose name fits a glob pattern; `*` does not cross a `/`. Raises StorageError when none does."""
    depth = pattern.count("/")
    found = [each for each in files if each.name.count("/") == depth and fnmatch.fnmatchcase(each.name, pattern)]
    if not found:
        some = ", ".join(each.name for each in files[:5]) or "nothing"
        raise StorageError(f"{where}: no file matches; there are: {some}", "correct the pattern", missing=True)
    return found


def split_uri(uri: str, scheme: str) -> tuple[str, str]:
    """`s3://bucket/a/b` as ("bucket", "a/b"). Raises UserError without a first part."""
    first, _, rest = uri.removeprefix(f"{scheme}://").partition("/")
    if not first:
        raise UserError(f"{uri}: names nothing", f"write it as {scheme}://NAME/PATH")
    return first, rest.strip("/")

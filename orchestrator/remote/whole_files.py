"""How a file arrives on this computer: under a temporary name, checked, and only then under its own.

A truncated file under the final name would later be taken for a whole one. Nothing here knows where bytes come from.

    with landing(Path("runs/x/train.log")) as file:
        file.write(data)          # an exception in here leaves the old file as it was
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from orchestrator.core.errors import GptctlError, UserError


@contextmanager
def landing(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file that becomes `path` by rename when the block ends well, and vanishes when it does not."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:80]}.", delete=False) as file:
            try:
                yield file  # type: ignore[misc]  # a wrapper that behaves as BinaryIO
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> GptctlError:
    """The same trouble in the words of the person who can end it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left on this computer for {path}", hint="free space, then run the command again")
    return UserError(f"cannot write {path}: {error.strerror or error}", hint="check the folder's owner and mode")


def require_space(folder: Path, size_bytes: int) -> None:
    """Refuse before the first byte what could not end well. UserError names both figures."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < size_bytes:
        raise UserError(
            f"{folder} needs {size_bytes / 1e9:.2f} GB and its disk has {free_bytes / 1e9:.2f} GB free",
            hint="free some space, or choose another folder with --to",
        )

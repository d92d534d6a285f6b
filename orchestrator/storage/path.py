"""Files and folders of this computer, and glob patterns over them. The only source that goes through the laptop.

A download plan names `file://` URLs: only an agent on this computer can follow it. Reading twice sees whatever lies
there at that time; size and modification time are the version.

Example: `storage().manifest("~/data/fineweb")` -> [StoredFile("train.safetensors", 6520504320, ...), ...]
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.errors import StorageError, UserError
from orchestrator.core.ports import Part, Storage, StoredFile, Upload
from orchestrator.core.safe_names import WILD


class PathStorage:
    """Holds nothing."""

    scheme = "path"

    def manifest(self, uri: str) -> Sequence[StoredFile]:
        """A folder's files and those of its subfolders, a glob's matches, or the one file; none that is hidden."""
        path = Path(uri).expanduser()
        if path.is_file():
            return [_stored(path, path.name)]
        if path.is_dir():
            found = [each.relative_to(path) for each in (*path.glob("*"), *path.glob("*/*"))]
            plain = [each for each in found if not any(part.startswith(".") for part in each.parts)]
            return [_stored(path / each, each.as_posix()) for each in sorted(plain) if (path / each).is_file()]
        if WILD.search(uri):
            found = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if os.path.isfile(each))
            if found:
                common = Path(os.path.commonpath([each.parent for each in found]))
                return [_stored(each, each.relative_to(common).as_posix()) for each in found]
        raise StorageError(f"{uri} does not exist", "give a file, a folder or a quoted pattern", missing=True)

    def read(self, uri: str, start: int, size_bytes: int) -> bytes:
        try:
            with Path(uri).expanduser().open("rb") as file:
                file.seek(start)
                return file.read(size_bytes)
        except OSError as error:
            raise StorageError(
                f"{uri}: {error.strerror or error}", missing=isinstance(error, FileNotFoundError)
            ) from error

    def download_plan(
        self, uri: str, destination: str, start: int = 0, size_bytes: int | None = None, expires_s: float = 0.0
    ) -> Part:
        path = Path(uri).expanduser().resolve()
        (file,) = self.manifest(str(path))
        return Part(path.as_uri(), start, file.size_bytes - start if size_bytes is None else size_bytes, destination)

    def upload_plan(self, uri: str, files: Sequence[StoredFile], expires_s: float = 0.0) -> Sequence[Upload]:
        raise UserError(
            f"{uri}: a machine cannot write to a path of this computer",
            "gptctl fetch brings checkpoints here; for a store, use s3://BUCKET/PREFIX",
        )

    def grants_end_at(self) -> float | None:
        return None


def storage() -> Storage:
    """Needs no settings."""
    return PathStorage()


def _stored(path: Path, name: str) -> StoredFile:
    status = path.stat()
    return StoredFile(name, status.st_size, None, str(path), f"{status.st_size}-{status.st_mtime_ns}")

"""`gptctl data push`: uploads a prepared dataset to a bucket and verifies it there, dataset.json last.

boto3 uploads file by file from this computer, where files and credentials are. Files that the bucket already has, by
their ETag, are not sent again: a killed push continues at the next file.

Example::

    push(Path("data/books"), "s3://bucket/books", overwrite=False, as_json=False)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator import storage
from orchestrator.cli.data.program import run_program
from orchestrator.cli.screen.screen import show_progress, talk
from orchestrator.core.errors import UserError, VerificationFailed
from orchestrator.core.formats import size

DATASET = "dataset.json"
PART_BYTES = 8 * 2**20
"""boto3's: larger files are sent in parts of this, and their ETag is made of those of the parts."""
MOST_PARTS = 10_000
READ_BYTES = 16 * 2**20


def push(folder: Path, uri: str, *, overwrite: bool, as_json: bool) -> int:
    """Sends what is missing and prints the result. Raises UserError, StorageError, VerificationFailed."""
    store = _bucket(uri)
    files = _listed(folder)
    target = uri.rstrip("/")
    _refuse_another(store, f"{target}/{DATASET}", folder, overwrite=overwrite)
    total = sum((folder / name).stat().st_size for name in files)
    talk(f"{folder}: {len(files)} files, {size(total)}, to {target}")
    done: list[dict[str, Any]] = []
    with show_progress() as show:
        told = _byte_counter(show, total)
        for name in files:
            done.append(_push_file(store, folder / name, f"{target}/{name}", told))
    if as_json:
        print(json.dumps({"to": target, "size_bytes": total, "files": done}, indent=1))
        return 0
    sent = sum(each["sent"] for each in done)
    print(f"pushed: {sent} files sent, {len(done) - sent} already there; all {size(total)} verified in {target}")
    print(f'next: in a recipe, data.source = "{target}"')
    return 0


def _bucket(uri: str) -> Any:
    """The storage; only buckets take uploads."""
    if "://" not in uri or storage.scheme_of(uri) != "s3":
        raise UserError(f"{uri}: gptctl pushes data to a bucket only", "write it as s3://BUCKET/PREFIX")
    return storage.of(uri)


def _listed(folder: Path) -> list[str]:
    """Names of the dataset's files, once they are what its dataset.json says; that one last."""
    found = run_program("tokens.verify", [str(folder.absolute())], needs=())
    if not found["ok"]:
        raise VerificationFailed(
            f"{folder} does not match its dataset.json: {found['problems'][0]}", f"gptctl data verify {folder}"
        )
    return [*(each["name"] for each in found["files"]), DATASET]


def _refuse_another(store: Any, uri: str, folder: Path, *, overwrite: bool) -> None:
    there = store.head(uri)
    if there is None or overwrite:
        return
    if store.read(uri, 0, there.size_bytes) != (folder / DATASET).read_bytes():
        raise UserError(f"{uri} describes another dataset", "choose another prefix, or give --overwrite")


def _push_file(store: Any, path: Path, uri: str, tell: Callable[[int], None]) -> dict[str, Any]:
    """Sends the file unless it is there, and verifies what is there afterwards."""
    size_bytes, etag = path.stat().st_size, _etag(path)
    there = store.head(uri)
    sent = there is None or there.size_bytes != size_bytes or not _same(store, path, there, etag)
    if sent:
        store.upload(path, uri, tell)
        there = store.head(uri)
        if there is None or there.size_bytes != size_bytes or not _same(store, path, there, etag):
            raise VerificationFailed(
                f"{uri} does not match what was sent", "push again; if that fails, too, the store is at fault"
            )
    else:
        tell(size_bytes)
    return {"name": path.name, "size_bytes": size_bytes, "sent": sent, "uri": uri}


def _same(store: Any, path: Path, there: Any, etag: str) -> bool:
    """By ETag; a bucket that encrypts with keys of its own has others, and is read back."""
    if there.version.strip('"') == etag:
        return True
    with path.open("rb") as file:
        for start in range(0, there.size_bytes, READ_BYTES):
            if store.read(there.uri, start, min(READ_BYTES, there.size_bytes - start)) != file.read(READ_BYTES):
                return False
    return True


def _etag(path: Path) -> str:
    """What S3 calls a file that boto3 sent: its MD5, or the MD5 of the parts' MD5s and their number."""
    parts = []
    with path.open("rb") as file:
        while chunk := file.read(PART_BYTES):
            parts.append(hashlib.md5(chunk, usedforsecurity=False))
    if path.stat().st_size < PART_BYTES:
        return parts[0].hexdigest() if parts else hashlib.md5(b"", usedforsecurity=False).hexdigest()
    whole = hashlib.md5(b"".join(part.digest() for part in parts), usedforsecurity=False)
    return f"{whole.hexdigest()}-{len(parts)}" if len(parts) <= MOST_PARTS else ""


def _byte_counter(show: Callable[[dict[str, object]], None], total: int) -> Callable[[int], None]:
    """Counts bytes from boto3's threads."""
    began, moved = time.monotonic(), [0]

    def tell(size_bytes: int) -> None:
        moved[0] += size_bytes
        rate = moved[0] / max(time.monotonic() - began, 1e-9)
        left_s = (total - moved[0]) / rate if rate else None
        show({"what": "push", "done": moved[0], "total": total, "unit": "bytes", "rate": rate, "eta_s": left_s})

    return tell

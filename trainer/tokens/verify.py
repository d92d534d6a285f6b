"""`python -m trainer.tokens.verify`: whether a folder's token files are, byte for byte, what its dataset.json says.

Names the damaged blocks of 16 MiB. It needs only the standard library and changes nothing.

Example::

    python -m trainer.tokens.verify data/fineweb
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

from trainer.progress import ByteProgress, print_event
from trainer.tokens.digests import DATASET, Digests, FileEntry, digest_file
from trainer.tokens.folder import NoDatasetError, read_dataset_json


class FileCheck(TypedDict):
    """One file against its entry: problems in words, and the numbers of damaged blocks."""

    name: str
    ok: bool
    problems: list[str]
    damaged_blocks: list[int]


class DatasetCheck(TypedDict):
    """The whole folder; `size_bytes` as dataset.json has it."""

    path: str
    ok: bool
    size_bytes: int
    files: list[FileCheck]
    problems: list[str]


def verify(path: Path) -> DatasetCheck:
    """Checks every file of the folder (or of this dataset.json) against its entry. Raises NoDatasetError, OSError."""
    folder = path.parent if path.name == DATASET else path
    about = read_dataset_json(folder)
    if not about.get("files"):
        raise NoDatasetError(f"{folder} has no {DATASET} that lists files: nothing to compare with")
    listed = about["files"]
    progress = ByteProgress(sum(int(entry.get("size_bytes", 0)) for entry in listed.values()))
    files, done_bytes = [], 0
    for name, entry in listed.items():
        files.append(_verify_file(folder, name, listed, progress.report_file(done_bytes)))
        done_bytes += int(entry.get("size_bytes", 0))
    problems = [f"{file['name']}: {problem}" for file in files for problem in file["problems"]]
    present = (file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    unlisted = sorted(name for name in present if name.startswith(("train", "val")) and name not in listed)
    problems += [f"{name} is not in {DATASET}" for name in unlisted]
    return {"path": str(folder), "ok": not problems, "size_bytes": done_bytes, "files": files, "problems": problems}


def _verify_file(folder: Path, name: str, listed: Mapping[str, FileEntry], report: Callable[[int], None]) -> FileCheck:
    entry = listed[name]
    damaged: list[int] = []
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        problems = ["is not a plain file name: not checked"]
    elif not (folder / name).is_file():
        problems = ["is missing"]
    else:
        digests = digest_file(folder / name, report)
        damaged = [] if digests["size_bytes"] != entry.get("size_bytes") else _damaged_blocks(digests, entry)
        problems = _problems(digests, entry, damaged, listed)
    return {"name": name, "ok": not problems, "problems": problems, "damaged_blocks": damaged}


def _damaged_blocks(digests: Digests, entry: FileEntry) -> list[int]:
    blocks = entry.get("blocks")
    if not isinstance(blocks, list) or entry.get("block_size_bytes") != digests["block_size_bytes"]:
        return []  # an older dataset.json: the whole file's digest decides
    return [at for at, (here, there) in enumerate(zip(digests["blocks"], blocks, strict=False)) if here != there]


def _problems(digests: Digests, entry: FileEntry, damaged: list[int], listed: Mapping[str, FileEntry]) -> list[str]:
    if digests["sha256"] == entry.get("sha256"):
        return []
    twin = next((name for name, other in listed.items() if other.get("sha256") == digests["sha256"]), None)
    if twin is not None:
        return [f"holds the content of {twin}: were the two swapped?"]
    more_bytes = digests["size_bytes"] - int(entry.get("size_bytes", 0))
    if more_bytes:
        return [f"is {abs(more_bytes)} bytes {'longer' if more_bytes > 0 else 'shorter'} than it was"]
    size = digests["block_size_bytes"]
    return [
        f"block {at} of {len(digests['blocks'])} is damaged "
        f"(bytes {at * size} to {min((at + 1) * size, digests['size_bytes']) - 1})"
        for at in damaged
    ] or ["has another sha256 than it had"]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 with one JSON line at the end, even for damage, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.tokens.verify", description="Compare files with dataset.json."
    )
    parser.add_argument("path", type=Path, help="a folder with dataset.json")
    options = parser.parse_args(arguments)
    try:
        print_event("verified", **verify(options.path))
    except (NoDatasetError, OSError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

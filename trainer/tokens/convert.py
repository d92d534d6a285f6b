"""`python -m trainer.tokens.convert`: token files of one kind to another, id for id, in constant memory.

Each file appears whole or not at all, dataset.json last. It overwrites files only with --overwrite, and stops at an id
that the new kind cannot hold.

Example::

    python -m trainer.tokens.convert data/fineweb --format llmc --to data/fineweb-llmc
    python -m trainer.tokens.convert train.bin --format safetensors --to train.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

from trainer.layout.token_layout import SAFETENSORS
from trainer.progress import ByteProgress, print_event
from trainer.tokens.digests import DATASET, DatasetJson, FileEntry
from trainer.tokens.folder import NoDatasetError, TokenDataset, find_dataset
from trainer.tokens.token_file import KINDS, SUFFIXES, DataError, TokenFile, open_token_file
from trainer.tokens.token_writers import Layout, write_atomically, write_token_file

CHUNK_TOKENS = 2**20


class ConvertError(ValueError):
    """The target cannot be written, or cannot hold an id."""


class Converted(TypedDict):
    """What was written, by file name."""

    to: str
    format: str
    dtype: str
    files: dict[str, FileEntry]


def convert(source: Path, kind: str, to: Path, *, overwrite: bool = False, stored: str | None = None) -> Converted:
    """Writes the files in folder `to` (or as file `to`), and returns what was written. `stored`: the type of the ids of
    headerless files, where you vouch for it.

    Raises NoDatasetError, DataError, ConvertError, and OSError for a folder that cannot be written.
    """
    dataset = find_dataset(source)
    files = [open_token_file(path, dtype=stored) for path in dataset.files]
    targets = _targets(dataset, kind, to)
    _check_targets(targets, dataset, to, overwrite=overwrite)
    dtype = _dtype(files, kind, dataset.about)
    progress = ByteProgress(sum(path.stat().st_size for path in dataset.files))
    folder = targets[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        (folder / DATASET).unlink(missing_ok=True)  # without it the folder counts as unfinished
    entries: dict[str, FileEntry] = {}
    known, done_bytes = dataset.about.get("files", {}), 0
    for file, target in zip(files, targets, strict=True):
        documents = known[file.path.name].get("documents", 0) if file.path.name in known else 0
        report = progress.report_file(done_bytes)
        layout = Layout(kind, dtype, file.count)
        entries[target.name] = write_token_file(target, layout, file.count, _ids(file, dtype, report), documents)
        done_bytes += file.path.stat().st_size
    if source.is_dir():
        about = _about(dataset, kind, dtype, entries)
        write_atomically(folder / DATASET, (json.dumps(about, indent=1) + "\n").encode())
    return {"to": str(to), "format": kind, "dtype": dtype, "files": entries}


def _targets(dataset: TokenDataset, kind: str, to: Path) -> list[Path]:
    suffix = SUFFIXES[kind]
    if dataset.path.is_file() and to.suffix in SUFFIXES.values() and not to.is_dir():
        if to.suffix != suffix:
            raise ConvertError(f"{to}: a {kind} file is called *{suffix}")
        return [to]
    return [to / f"{path.stem}{suffix}" for path in dataset.files]


def _check_targets(targets: list[Path], dataset: TokenDataset, to: Path, *, overwrite: bool) -> None:
    if len(set(targets)) < len(targets):
        raise ConvertError(f"{dataset.path} has two files that would both become {targets[0].name}")
    if {path.resolve() for path in dataset.files} & {path.resolve() for path in targets}:
        raise ConvertError(f"{to} is the source itself: choose another name")
    if dataset.path.is_dir() and dataset.path.resolve() == to.resolve():
        raise ConvertError(f"{to} is the source itself, and a folder has one kind: choose another folder")
    existing = next((path for path in targets if path.exists()), None)
    if existing is not None and not overwrite:
        raise ConvertError(f"{existing} exists: add --overwrite, or choose another name")
    if dataset.path.is_dir() and to.is_dir():
        others = {path for path in to.iterdir() if path.suffix in SUFFIXES.values()} - set(targets)
        if others:
            raise ConvertError(f"{to} has other token files ({min(others).name}): choose another folder")


def _dtype(files: list[TokenFile], kind: str, about: DatasetJson) -> str:
    """16 bits where they may suffice; `_ids` checks that they do."""
    vocab_size = about.get("vocab_size")
    if kind != SAFETENSORS or (isinstance(vocab_size, int) and vocab_size <= 2**16):
        return "uint16"
    return "uint16" if all(file.dtype == "uint16" for file in files) else "uint32"


def _ids(file: TokenFile, dtype: str, report: Callable[[int], None]) -> Iterator[bytes]:
    largest = np.iinfo(dtype).max
    for start in range(0, file.count, CHUNK_TOKENS):
        ids = file.read(start, CHUNK_TOKENS)
        wrong = (ids < 0) | (ids > largest)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ConvertError(f"{file.path}: token {start + at} has id {ids[at]}, which {dtype} cannot hold")
        yield ids.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
        report(start * np.dtype(file.dtype).itemsize)


def _about(dataset: TokenDataset, kind: str, dtype: str, entries: dict[str, FileEntry]) -> DatasetJson:
    """dataset.json of the new folder: the older one with the new files."""
    about: DatasetJson = {**dataset.about} if dataset.about else {"source": str(dataset.path)}
    if "request" in about:
        about["request"] = {**about["request"], "format": kind}
    tokens = sum(entry["tokens"] for entry in entries.values())
    return {**about, "format": kind, "dtype": dtype, "tokens": tokens, "files": entries}


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0 with one JSON line at the end, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.tokens.convert", description="Convert token files to another kind."
    )
    parser.add_argument("source", type=Path, help="a token file, or a folder with train* and val*")
    parser.add_argument("--format", choices=KINDS, required=True)
    parser.add_argument("--to", type=Path, required=True, help="a folder, or for one file a file")
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same name")
    parser.add_argument(
        "--dtype", choices=("uint16", "uint32"), help="of headerless files (default: proven 16-bit ids)"
    )
    options = parser.parse_args(arguments)
    overwrite, stored = options.overwrite, options.dtype
    try:
        print_event(
            "converted", **convert(options.source, options.format, options.to, overwrite=overwrite, stored=stored)
        )
    except (NoDatasetError, DataError, ConvertError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

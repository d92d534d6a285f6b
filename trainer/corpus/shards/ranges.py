"""Parts the text of a preparation into shards of about equal size, each a row of files and parts of files.

Where the parts begin follows from the files' sizes and content alone, so every machine with the same files parts them
alike. A plain text file and a JSON Lines file are parted between two documents; CSV, Parquet and what is compressed
is not parted. It must not encode.

Example::

    ranges(find_files(["books/*.jsonl"]), index=3, count=8)   # what shard 3 of 8 reads
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.corpus.documents import GZIP, JSON_LINES, MARK, TEXT, BoundedFile, SourceFile

END_BYTES = 2**16
SEARCH_BYTES = 2**20


def ranges(files: Sequence[SourceFile], index: int, count: int) -> list[SourceFile]:
    """The files and parts of files of shard `index` (from 1) of `count`, in order; none where nothing begins there."""
    start, stop = _cut(files, index - 1, count), _cut(files, index, count)
    found = []
    for number, file in enumerate(files[: stop[0] + 1]):
        begin = start[1] if number == start[0] else 0
        end = stop[1] if number == stop[0] else file.size_bytes
        if number >= start[0] and begin < end:
            is_part = (begin, end) != (0, file.size_bytes)
            found.append(replace(file, size_bytes=end - begin, start=begin, stop=end) if is_part else file)
    return found


def _cut(files: Sequence[SourceFile], index: int, count: int) -> tuple[int, int]:
    """File number and byte at which the text after `index` of `count` shares begins."""
    left = sum(file.size_bytes for file in files) * index // count
    for number, file in enumerate(files):
        if left < file.size_bytes:
            begin = _document_from(file, left)
            return (number, begin) if begin < file.size_bytes else (number + 1, 0)
        left -= file.size_bytes
    return len(files), 0


def _document_from(file: SourceFile, offset: int) -> int:
    """Where the first document at or after this byte begins; the file's size where there is none."""
    if offset == 0:
        return 0
    if file.kind == JSON_LINES and file.path.suffix != GZIP:
        return _after(file, offset, b"\n")
    if file.kind == TEXT and file.path.suffix not in (GZIP, ".py"):
        return _after(file, offset, MARK)
    return file.size_bytes


def _after(file: SourceFile, offset: int, mark: bytes) -> int:
    """The end of the first mark that ends at or after the byte."""
    with file.path.open("rb") as stream:
        at = max(0, offset - len(mark))
        stream.seek(at)
        rest = b""
        while chunk := stream.read(SEARCH_BYTES):
            text = rest + chunk
            if (found := text.find(mark)) >= 0:
                return at + found + len(mark)
            searched = max(0, len(text) - len(mark) + 1)  # what follows may begin a mark
            at, rest = at + searched, text[searched:]
    return file.size_bytes


def fingerprint(files: Sequence[SourceFile]) -> str:
    """Tells two texts apart without reading all of either: a sha256 of each file's size and both its ends. Where the
    files are, and what they are called, decides nothing."""
    whole = hashlib.sha256()
    for file in files:
        with file.path.open("rb") as stream:
            head = stream.read(END_BYTES)
            stream.seek(max(0, file.size_bytes - END_BYTES))
            whole.update(repr((file.kind, file.size_bytes, head, stream.read(END_BYTES))).encode())
    return whole.hexdigest()


def write_text(parts: Sequence[SourceFile], folder: Path) -> list[str]:
    """Copies the text of a shard into a folder, for another machine; returns the names, in order. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, part in enumerate(parts):
        suffix = Path(part.path.name.removesuffix(GZIP)).suffix + (GZIP if part.path.suffix == GZIP else "")
        names.append(f"{number:06d}{suffix}")
        with part.path.open("rb") as stream, (folder / names[-1]).open("wb") as copy:
            text = BoundedFile(stream, part.start, part.stop)
            while chunk := text.read(SEARCH_BYTES):
                copy.write(chunk)
    return names

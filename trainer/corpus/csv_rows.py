"""CSV and TSV files as rows of raw text, from any position, by Python's own csv module.

It must not know about the split or tokens. The first line names the columns; a row may span lines.

Example::

    with path.open("rb") as file:
        for raw, next_row in read_rows(path, file, offset=0, column="text"): ...
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from trainer.corpus.parquet import CorpusError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Windows programs begin UTF-8 files with it; it is not text."""
TSV = ".tsv"
LONGEST_FIELD = 256 * 2**20


class _Lines:
    """A file's lines as text, and how far they are read. Bytes that are not UTF-8 become lone surrogates."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.offset = file, file.tell()

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline():
            self.offset += len(line)
            yield line.decode(errors="surrogateescape")


def read_rows(path: Path, file: BinaryIO, offset: int, column: str) -> Iterator[tuple[bytes, int]]:
    """The column's text of each row from byte `offset` on, and where the next row begins. Raises CorpusError."""
    csv.field_size_limit(LONGEST_FIELD)
    dialect = "excel-tab" if path.name.removesuffix(".gz").lower().endswith(TSV) else "excel"
    file.seek(0)
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)
    head = _Lines(file)
    try:
        names = next(csv.reader(head, dialect), [])
        if column not in names:
            raise CorpusError(f"{path} has no column {column!r}; it has: {', '.join(names)}. Choose one with --column")
        at = names.index(column)
        file.seek(max(offset, head.offset))
        lines = _Lines(file)
        begin = lines.offset
        for row in csv.reader(lines, dialect):
            if row and len(row) != len(names):
                raise CorpusError(f"{path}: the row at byte {begin} has {len(row)} fields, not {len(names)}")
            begin = lines.offset
            yield (row[at] if row else "").encode(errors="surrogateescape"), begin
    except csv.Error as error:
        raise CorpusError(f"{path}: not a CSV file: {error}") from error

"""Parquet files as rows of raw text: the only importer of pyarrow, which is an extra.

It must not know about the split or tokens. It holds a few hundred rows at a time, however large a row group is.

Example::

    for raw, next_row, share in read_rows(Path("train.parquet"), first_row=0, column="text"): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROWS = 256
BUFFER_BYTES = 2**20


class CorpusError(ValueError):
    """The source cannot be read: missing, damaged, without the column, or of an unknown kind."""


def read_rows(path: Path, first_row: int, column: str) -> Iterator[tuple[bytes, int, float]]:
    """Each row's text (empty for null), the number of the next row, and the share of the file read so far."""
    pyarrow = _library(path)
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            _check_column(path, pyarrow, file.schema_arrow, column)
            groups, row = _groups_from(file, first_row)
            for batch in file.iter_batches(ROWS, row_groups=groups, columns=[column], use_threads=False):
                for text in _texts(pyarrow, batch.column(0)):
                    row += 1
                    if row > first_row:
                        yield text or b"", row, row / file.metadata.num_rows
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path}: damaged, or not a Parquet file: {error}") from error


def _library(path: Path) -> Any:
    try:
        # Only here: just Parquet needs pyarrow, 150 MB and a third of a second to import.
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(f"{path}: reading Parquet needs pyarrow: pip install 'gptctl[data]'") from error
    return pyarrow


def _check_column(path: Path, pyarrow: Any, schema: Any, column: str) -> None:
    names = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if column not in schema.names:
        raise CorpusError(f"{path} has no column {column!r}; it has: {names}. Choose one with --column")
    kind = schema.field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not any(
        fits(kind)
        for fits in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_binary,
            pyarrow.types.is_large_binary,
            pyarrow.types.is_string_view,
            pyarrow.types.is_binary_view,
        )
    ):
        raise CorpusError(f"{path}: column {column!r} holds {kind}, not text; the columns are: {names}")


def _groups_from(file: Any, first_row: int) -> tuple[list[int], int]:
    """The row groups from the one with this row, and the number of their first row."""
    row = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows > first_row:
            return list(range(group, file.num_row_groups)), row
        row += rows
    return [], row


def _texts(pyarrow: Any, column: Any) -> list[bytes | None]:
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    texts: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return texts

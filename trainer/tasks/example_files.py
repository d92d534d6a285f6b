"""Files of examples: Alpaca's JSON (a list, or JSON Lines), and labelled CSV, TSV and JSON.

A table may have no line of names, as the SMS Spam Collection has none: then its two columns are label and text. It must
not know about tokens.

Example::

    for example in read_examples(Path("alpaca.json"), ("instruction", "output"), ("input",)):
        example.where, example.texts["output"]
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

LONGEST_FIELD = 256 * 2**20
GZIP = ".gz"
CSV, TSV = ".csv", ".tsv"


class ExamplesError(ValueError):
    """A file that holds no examples, or one that lacks what the task needs. Names file and example."""


class Example(NamedTuple):
    """One example: `where` it is, in words, and its texts by name."""

    where: str
    texts: dict[str, str]


def read_examples(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> list[Example]:
    """All examples of a file, with the texts under these names. Raises ExamplesError."""
    text = _text(path)
    name = path.name.removesuffix(GZIP).lower()
    if name.endswith((CSV, TSV)) or _is_table(text):
        rows = _table(path, text, needed, tabs=not name.endswith(CSV))
    else:
        rows = _json(path, text)
    found = [Example(where, _texts(where, row, needed, optional)) for where, row in rows]
    if not found:
        raise ExamplesError(f"{path} holds no examples")
    return found


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == GZIP else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise ExamplesError(f"{path}: is not UTF-8 text: {error}") from error


def _is_table(text: str) -> bool:
    """Whether a file of no known suffix is lines of tab-separated columns: JSON begins with a bracket."""
    return not text.lstrip().startswith(("[", "{")) and "\t" in text.partition("\n")[0]


def _json(path: Path, text: str) -> Iterator[tuple[str, object]]:
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ExamplesError(f"{path}: is not JSON: {error}") from error
        yield from ((f"{path.name}, example {number}", value) for number, value in enumerate(values, start=1))
        return
    # Not splitlines: a JSON text may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path.name}, line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ExamplesError(f"{path}: line {number} is not JSON: {error}") from error


def _table(path: Path, text: str, needed: Sequence[str], *, tabs: bool) -> Iterator[tuple[str, object]]:
    """Rows by the names in the first line; without names, of two columns the first is the label, and nothing is
    quoted: the SMS Spam Collection has quotation marks that never end."""
    first = text.partition("\n")[0].rstrip("\r").split("\t" if tabs else ",")
    named = set(needed) <= {each.strip().strip('"') for each in first}
    if not named and len(first) != 2:
        raise ExamplesError(f"{path}: its first line has no {' and '.join(needed)}; it has: {', '.join(first)}")
    csv.field_size_limit(LONGEST_FIELD)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if named or not tabs else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", quoting=quoting)
    names = [each.strip() for each in next(reader)] if named else [needed[1], needed[0]]
    try:
        for row in reader:
            if row and len(row) != len(names):
                raise ExamplesError(f"{path}: line {reader.line_num} has {len(row)} columns, not {len(names)}")
            if row:
                yield f"{path.name}, line {reader.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ExamplesError(f"{path}: line {reader.line_num}: {error}") from error


def _texts(where: str, row: object, needed: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    if not isinstance(row, dict):
        raise ExamplesError(f"{where}: is a {type(row).__name__}, not an object with {' and '.join(needed)}")
    lacking = [name for name in needed if name not in row]
    if lacking:
        raise ExamplesError(f"{where}: has no {' and '.join(lacking)}; it has: {', '.join(map(str, row)) or 'nothing'}")
    texts = {name: row.get(name) for name in (*needed, *optional)}
    wrong = [name for name, text in texts.items() if text is not None and not isinstance(text, str | int)]
    if wrong:
        raise ExamplesError(f"{where}: {wrong[0]} is a {type(texts[wrong[0]]).__name__}, not text")
    return {name: "" if text is None else str(text) for name, text in texts.items()}

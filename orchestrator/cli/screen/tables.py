"""Fits a table into a terminal without breaking a cell: an id or a command that is cut cannot be copied.

Columns leave by priority until the rest fits. In a narrow terminal a row of cards takes two lines, and where not even
the columns that always stay fit, each row is a block of lines. Pure functions: no terminal, no Rich console.

Example::

    columns = (Column("RUN"), Column("COST", right=True), Column("SEEN", leaves=1))
    fit(columns, [["quick-1", "$0.53", "4s ago"]], width=16).columns   # RUN and COST
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core.formats import DASH

__all__ = ["Column", "Fitted", "as_blocks", "as_cards", "fit", "footnotes", "speaking"]

SILENT = ("", DASH)
GAP = 2
"""Blank columns between two cells."""
PROSE_WIDTH = 24
"""Columns that a cell of prose takes at least."""
CARDS_BELOW = 100
"""Columns of a terminal that is too narrow for one line per run."""
NUMBER = re.compile(r"(?<![\w.,:/-])(?:below )?\d+(?:\.\d+)?%?(?![\w:/-]|[.,]\d)")
"""A number on its own: neither part of a name (8xA100), nor of a date."""


@dataclass(frozen=True)
class Column:
    """`leaves`: 0 if the column always stays; else the column with the highest number leaves first. `label`: what the
    second line of a card calls its value, the name in lower case by default; with `{}`, where the value goes. `prose`:
    its cells may break at spaces, down to PROSE_WIDTH; at most one column of a table. `in_first`: a card omits a value
    with which its first cell begins, as the id of a run does with its recipe."""

    name: str
    right: bool = False
    leaves: int = 0
    label: str = ""
    prose: bool = False
    in_first: bool = False

    def worded(self, value: str) -> str:
        """The value with its label, as the second line of a card has it."""
        label = self.label or f"{self.name.lower()} {{}}"
        return label.format(value)


@dataclass(frozen=True)
class Fitted:
    """The columns that fit, their cells, and the columns and cells that had to leave; `fits` is false if the staying
    columns alone are wider than the terminal."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    left: Sequence[Column] = ()
    left_cells: Sequence[Sequence[str]] = field(default=())
    fits: bool = True


def speaking(
    columns: Sequence[Column], rows: Sequence[Sequence[str]]
) -> tuple[Sequence[Column], Sequence[Sequence[str]]]:
    """The table without the columns in which no row says anything; the first one stays where none does."""
    said = [at for at in range(len(columns)) if any(row[at] not in SILENT for row in rows)] or [0]
    return ([columns[at] for at in said], [[row[at] for at in said] for row in rows]) if rows else (columns, rows)


def fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Fitted:
    """The table without the columns that must leave so that it is at most `width` characters wide; prose in lines."""
    whole = [max(_width(text) for text in (column.name, *cells)) for column, cells in _by_column(columns, rows)]
    least = [min(size, PROSE_WIDTH) if column.prose else size for column, size in zip(columns, whole, strict=True)]
    stay = list(range(len(columns)))
    while sum(least[at] + GAP for at in stay) - GAP > width:
        leaving = max(stay, key=lambda at: (columns[at].leaves, at))
        if columns[leaving].leaves == 0:
            break
        stay.remove(leaving)
    gone = [at for at in range(len(columns)) if at not in stay]
    room = width + GAP - sum(least[at] + GAP for at in stay)
    return Fitted(
        [columns[at] for at in stay],
        [[_in_lines(row[at], least[at] + room) if columns[at].prose else row[at] for at in stay] for row in rows],
        [columns[at] for at in gone],
        [[row[at] for at in gone] for row in rows],
        room >= 0,
    )


def as_cards(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Two lines a row, three where the second is too long: the staying cells aligned, then the others with labels."""
    stay = [at for at, column in enumerate(columns) if column.leaves == 0]
    rest = [at for at, column in enumerate(columns) if column.leaves]
    wide = [max((_width(row[at]) for row in rows), default=0) for at in stay]
    lines: list[str] = []
    for row in rows:
        first = [_padded(row[at], size, columns[at].right) for at, size in zip(stay, wide, strict=True)]
        joined = (" " * GAP).join(first).rstrip()
        lines += [joined] if _width(joined) <= width else _wrapped([row[at] for at in stay], width, " " * GAP)
        known = [columns[at].worded(row[at]) for at in rest if not _needless(columns[at], row[at], row[0])]
        lines += [f"  {line}" for line in _wrapped(known, width - 2, " · ")]
    return lines


def as_blocks(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The first cell on a line of its own, then a line for each other cell. Only spaces break a cell."""
    label = max((len(column.name) for column in columns), default=0)
    lines: list[str] = []
    for first, *cells in rows:
        lines.append(first)
        for column, cell in zip(columns[1:], cells, strict=True):
            if cell in SILENT:
                continue
            inside = max(width - label - 4, 16)
            text = textwrap.wrap(cell, inside, break_long_words=False, break_on_hyphens=False) or [cell]
            lines.append(f"  {column.name:<{label}}  {text[0]}")
            lines += [f"  {'':<{label}}  {more}" for more in text[1:]]
    return lines


def as_lines(fitted: Fitted) -> Iterator[str]:
    """The table without colour, for thousands of rows, which Rich takes a millisecond each to lay out."""
    names = [column.name for column in fitted.columns]
    table = [names, *([cell.replace("\n", " ") for cell in row] for row in fitted.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = [">" if column.right else "<" for column in fitted.columns]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return (layout.format(*row).rstrip() for row in table)


def broken(text: str, width: int) -> Iterator[str]:
    """Lines broken at spaces alone: half an id or a path is worth nothing."""
    for line in text.split("\n"):
        yield from textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]


def as_facts(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """One fact a line, for a screen reader: the first cell, then each other as `name: value`, however long."""
    lines: list[str] = []
    for first, *cells in rows:
        lines.append(f"{columns[0].name.lower()} {first}")
        lines += [
            f"{column.name.lower()}: {cell}"
            for column, cell in zip(columns[1:], cells, strict=True)
            if cell not in SILENT
        ]
    return lines


def footnotes(notes: Iterable[str]) -> Mapping[str, int]:
    """Each remark once, numbered from 1 in the order of its first appearance; empty ones have no number. Remarks that
    differ in numbers alone share one: `one_note` words it."""
    numbers: dict[str, int] = {}
    return {
        note: numbers.setdefault(NUMBER.sub("#", note), len(numbers) + 1) for note in dict.fromkeys(filter(None, notes))
    }


def note_lines(notes: Mapping[str, int], width: int) -> list[str]:
    """What footnotes() numbered, as lines below the table."""
    lines: list[str] = []
    for at in dict.fromkeys(notes.values()):
        note = one_note([each for each, number in notes.items() if number == at])
        first, *more = broken(note, max(width - 5, 20))
        lines += [f"{f'[{at}]':<4} {first}", *(f"{'':<5}{line}" for line in more)]
    return lines


def one_note(notes: Sequence[str]) -> str:
    """Remarks that differ in numbers alone as one, with the lowest and the highest: `MFU below 1% to 19% of 8.1`."""
    found = iter([sorted(set(each), key=_size) for each in zip(*map(NUMBER.findall, notes), strict=True)])

    def between(_: re.Match[str]) -> str:
        values = next(found)
        return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"

    return NUMBER.sub(between, notes[0])


def _size(number: str) -> tuple[float, bool]:
    """`below 1%` is less than `1%`."""
    return float(number.removeprefix("below ").rstrip("%")), not number.startswith("below")


def _needless(column: Column, value: str, first: str) -> bool:
    return value in SILENT or (column.in_first and first.startswith(value))


def _by_column(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Iterable[tuple[Column, Sequence[str]]]:
    cells = zip(*rows, strict=True) if rows else [()] * len(columns)
    return zip(columns, cells, strict=True)


def _width(text: str) -> int:
    """Columns of a terminal that the text takes."""
    if text.isascii():
        return len(text)
    # Only for wide characters: `status --json` needs no Rich.
    from rich.cells import cell_len

    return cell_len(text)


def _in_lines(text: str, width: int) -> str:
    broken = textwrap.wrap(text, max(width, PROSE_WIDTH), break_long_words=False, break_on_hyphens=False)
    return "\n".join(broken) or text


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - _width(text))
    return blank + text if right else text + blank


def _wrapped(pieces: Sequence[str], width: int, separator: str) -> list[str]:
    """The pieces in as few lines as they take, none broken."""
    lines: list[str] = []
    for piece in pieces:
        if lines and _width(lines[-1] + separator + piece) <= width:
            lines[-1] += separator + piece
        else:
            lines.append(piece)
    return lines

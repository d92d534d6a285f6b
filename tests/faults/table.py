"""The fault table as it is printed: a line per row, and the lies about lists as a matrix of lie and stage.

    python -m tests.faults.table ROWS.txt      # from the rows that batches left in GPTCTL_FAULT_ROWS

A cell of the matrix: machines alive at the end / of them named, our cost and the cloud's in cents, exit code; `-`: was
not run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

NAME = 62
"""Characters of a row's name."""
LIST_ROW = re.compile(r"list (?P<lie>.+) at (?P<stage>[a-z]+)")
FIGURES = re.compile(r"alive (\d+)  theirs +(\d+) c  ours +(\d+) c  exit (-?\d+)")
STAGES = ("acquire", "resume", "follow", "release", "orphans")
FAILED = "  FAILED"


def line(fault: str, figures: str, *, passed: bool) -> str:
    """One row."""
    return f"{fault:<{NAME}} {figures}{'' if passed else FAILED}"


def matrix(rows: Mapping[str, str]) -> list[str]:
    """Lies down, stages across; empty without a row about lists. rows: by name, what line() wrote after it."""
    cells = {
        (found["lie"], found["stage"]): _cell(figures)
        for fault, figures in rows.items()
        if (found := LIST_ROW.fullmatch(fault))
    }
    lies = list(dict.fromkeys(lie for lie, _ in cells))
    table = [["", *STAGES], *([lie, *(cells.get((lie, stage), "-") for stage in STAGES)] for lie in lies)]
    return ["  ".join(f"{cell:<16}" for cell in each).rstrip() for each in table] if cells else []


def _cell(figures: str) -> str:
    found = FIGURES.search(figures)
    if found is None or FAILED in figures:
        return "FAILED"
    alive, theirs, ours, code = found.groups()
    return f"{alive}/{alive}  {ours} {theirs}  {code}"


def read(lines: Iterable[str]) -> dict[str, str]:
    """The rows of a file that batches have added to, by name; of a row that was run twice the last one."""
    return {each[:NAME].strip(): each[NAME:].strip("\n") for each in lines if each.strip() and not each.startswith(" ")}


if __name__ == "__main__":
    kept = read(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    printed = [line(fault, figures.strip(), passed=True) for fault, figures in kept.items()]
    print("\n".join([*printed, "", *matrix(kept)]))
    print(f"{len(kept)} faults, {sum(FAILED not in figures for figures in kept.values())} survived")

"""Requirement lines such as `numpy>=2.0` against installed versions, by their numbers. Enough for what we require.

Example::

    satisfies("2.13.0+cpu", ">=2.9,<3")      # True
"""

from __future__ import annotations

import operator
import re

NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]+")
CLAUSE_PATTERN = re.compile(r"(==|>=|<=|!=|~=|<|>)\s*([0-9][0-9.]*)")
COMPARISONS = {
    "==": operator.eq, ">=": operator.ge, "<=": operator.le, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
    "~=": operator.ge,
}  # fmt: skip


def name(line: str) -> str:
    """`numpy>=2.0` -> `numpy`."""
    match = NAME_PATTERN.match(line.strip())
    return match.group(0) if match else line


def rest(line: str) -> str:
    """`numpy>=2.0` -> `>=2.0`."""
    return line.strip()[len(name(line)) :]


def numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:4])


def satisfies(version: str, clauses: str) -> bool:
    """Whether the version meets every clause; no clauses: always."""
    return all(_meets(numbers(version), sign, numbers(bound)) for sign, bound in CLAUSE_PATTERN.findall(clauses))


def _meets(have: tuple[int, ...], sign: str, bound: tuple[int, ...]) -> bool:
    length = max(len(have), len(bound))
    padded = [value + (0,) * (length - len(value)) for value in (have, bound)]
    return bool(COMPARISONS[sign](padded[0], padded[1]))

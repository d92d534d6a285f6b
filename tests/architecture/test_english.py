"""English by the style sheet in CONTRIBUTING.md: the worst patterns in messages, docstrings, comments and pages.

`python -m tests.architecture.test_english [FOLDER]` prints every hit. ALLOWED only goes down.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support.files.repository import REPOSITORY

PATTERNS = (
    r"(?<!there )(?<!There )\bis no (?!longer\b|more\b|less\b)",
    r"\banew\b",
    r"\ball the same\b",
    r"\bleav(?:e|es|ing) .{1,30} away\b",
    r"\bleft away\b",
    r"\bwhoever\b",
    r"\bsomebody\b",
    r"\bagreed were\b",
    r"\bcomes? along\b",
    r"\bgo(?:es)? on from\b",
    r"\bthere is nothing\b",
    r"\bdo(?:es)? without\b",
    r"\bof its own accord\b",
    r"\bsaid to be\b",
    r"\btold of\b",
    r"\band the like\b",
    r"\bherein\b",
    r"\bplease\b",
)
WORST = re.compile("|".join(PATTERNS), re.IGNORECASE)
GENERATED = ("docs/reference/cli/",)
"""Made from the help texts, which count where they are written."""

ALLOWED: dict[str, int] = {"orchestrator/providers": 1}
"""Hits allowed per room. The one is the description of firewall rules, by which those of older versions are found."""


def test_no_room_has_more_of_the_worst_patterns_than_before() -> None:
    found = Counter(room for room, _ in hits())
    worse = {room: f"{count}, {ALLOWED.get(room, 0)} allowed" for room, count in found.items()}
    assert {room: text for room, text in worse.items() if found[room] > ALLOWED.get(room, 0)} == {}, "\n".join(
        text for room, text in hits() if found[room] > ALLOWED.get(room, 0)
    )


def test_a_bad_sentence_is_found_and_a_good_one_is_not() -> None:
    bad = 'raise Error("the folder is no repository")  # whoever calls this\n'
    assert [line for line, text in texts_of_code(bad) if WORST.search(text)] == [1, 1]
    good = '"""The store is no longer needed, and there is no other."""\n'
    assert [line for line, text in texts_of_code(good) if WORST.search(text)] == []


def hits() -> Iterator[tuple[str, str]]:
    """(room, `path:line: the words around`) of every hit."""
    for folder in ("orchestrator", "trainer"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield from _hits_in(path, texts_of_code(path.read_text(encoding="utf-8")))
    for path in (
        *sorted((REPOSITORY / "docs").rglob("*.md")),
        *sorted(set(REPOSITORY.glob("*.md")) - {REPOSITORY / "CONTRIBUTING.md"}),
    ):
        yield from _hits_in(path, [(1, path.read_text(encoding="utf-8"))])


def _hits_in(path: Path, texts: Iterator[tuple[int, str]] | list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    name = str(path.relative_to(REPOSITORY))
    if name.startswith(GENERATED):
        return
    parts = Path(name).parts
    room = "/".join(parts[:2]) if parts[0] == "orchestrator" and len(parts) > 2 else parts[0]
    for first, text in texts:
        for match in WORST.finditer(text):
            line = first + text.count("\n", 0, match.start())
            yield room, f"{name}:{line}: {' '.join(text[max(0, match.start() - 30) : match.end() + 30].split())}"


def texts_of_code(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every string, docstring and comment."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


if __name__ == "__main__":
    chosen = [(room, text) for room, text in hits() if not sys.argv[1:] or room.startswith(sys.argv[1])]
    print("\n".join(text for _, text in chosen))
    print(dict(sorted(Counter(room for room, _ in chosen).items())), sum(1 for _ in chosen))

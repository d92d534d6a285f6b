"""A test imports what is there: a name that a change took away is found before any test is collected."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.files.repository import REPOSITORY

OURS = ("orchestrator", "trainer", "tests")


def test_every_name_that_a_test_imports_from_us_exists() -> None:
    missing = [
        f"{file.relative_to(REPOSITORY)}:{line.lineno}: {line.module} has no {alias.name}"
        for file in (REPOSITORY / "tests").rglob("*.py")
        for line in ast.walk(_tree(file))
        if isinstance(line, ast.ImportFrom) and (line.module or "").split(".")[0] in OURS
        for alias in line.names
        if not _has(line.module or "", alias.name)
    ]
    assert missing == []


def _has(module: str, name: str) -> bool:
    path = REPOSITORY / module.replace(".", "/")
    below = path / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return below.is_dir() or below.with_suffix(".py").is_file() or (file.is_file() and name in _names(file))


@cache
def _names(file: Path) -> frozenset[str]:
    return frozenset(_bound(_tree(file)))


def _bound(tree: ast.Module) -> Iterator[str]:
    """What a module's statements bind, those in conditions too; names inside functions more than that."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.split(".")[0]


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))

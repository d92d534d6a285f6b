"""What the agent is made of: the standard library, in the words of Python 3.8."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.agent.__main__ import VERBS
from orchestrator.remote.agent_client.package import agent_sources

SOURCES = {name: text.decode() for name, text in agent_sources().items()}
NEWER_METHODS = {"removeprefix", "removesuffix", "bit_count"}
NEWER_MODULES = {"tomllib", "graphlib", "zoneinfo"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_source_is_python_3_8_and_imports_only_the_standard_library(name: str) -> None:
    tree = ast.parse(SOURCES[name], feature_version=(3, 8))
    for node in ast.walk(tree):
        imported = {
            ast.Import: lambda node: [alias.name for alias in node.names],
            ast.ImportFrom: lambda node: [] if node.level else [node.module],
        }.get(type(node), lambda node: [])(node)
        for module in imported:
            top = module.split(".")[0]
            assert top in sys.stdlib_module_names - NEWER_MODULES or top in ("agent", "trainer"), module
        assert not isinstance(node, ast.Match)
        assert not (isinstance(node, ast.Attribute) and node.attr in NEWER_METHODS), ast.dump(node)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_alias_subscripts_a_builtin(name: str) -> None:
    """Outside of annotations `dict[str, int]` is evaluated, and no expression before Python 3.9."""
    aliases = [node.value for node in ast.parse(SOURCES[name]).body if isinstance(node, ast.Assign)]
    for node in (node for alias in aliases for node in ast.walk(alias)):
        generic = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name)
        assert not (generic and node.value.id in ("dict", "list", "tuple", "set", "type", "frozenset")), ast.unparse(
            node
        )


def test_of_the_trainer_only_the_names_of_its_files_travel() -> None:
    assert [name for name in SOURCES if name.startswith("trainer/")] == [
        "trainer/__init__.py",
        "trainer/run_files.py",
    ]


def test_annotations_are_never_evaluated() -> None:
    """`int | None` is no expression before Python 3.10."""
    for name, text in SOURCES.items():
        if name.startswith("agent/") and not name.endswith("__init__.py"):
            assert "from __future__ import annotations" in text, name


def test_an_unknown_verb_and_a_bad_question_are_refused(tmp_path: Path) -> None:
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def said(verb: str, question: str) -> str:
        argv = [sys.executable, "-I", "-S", str(tmp_path), verb]
        done = subprocess.run(argv, input=question, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr == ""
        return done.stdout

    assert '"bad-request"' in said("dance", "{}") and all(verb in said("dance", "{}") for verb in VERBS)
    assert '"bad-request"' in said("facts", "{") and '"bad-request"' in said("facts", "[1]")

"""The walls of the house: layers, gateways, what an import may cost, and which Python reads what."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core import errors
from tests.support.files.repository import REPOSITORY

HEAVY = {"fabric", "paramiko", "boto3", "pydantic", "httpx", "torch", "numpy", "rich.console", "jinja2", "sqlite3"}
OLD_PYTHON = (
    REPOSITORY / "trainer/run_files.py",
    *sorted(REPOSITORY.glob("trainer/arithmetic/*.py")),
    *sorted(REPOSITORY.glob("orchestrator/agent/**/*.py")),
)
"""What runs on a machine's own old Python 3.8."""


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every Python file below the folders, parsed; the path is relative to the repository."""
    for folder in folders:
        yield from _parsed(folder)


@functools.cache
def _parsed(folder: str) -> list[tuple[Path, ast.Module]]:
    paths = sorted((REPOSITORY / folder).rglob("*.py"))
    return [(path.relative_to(REPOSITORY), ast.parse(path.read_text(encoding="utf-8"), str(path))) for path in paths]


def error_classes() -> list[type[errors.GptctlError]]:
    """The whole tree, in the order of the file."""
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.GptctlError)]
    assert len(found) > 15
    return found


def test_the_layers_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["status", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    program = f"""
import json, sys
from orchestrator.__main__ import main
from orchestrator.cli import app
loaded = sorted(set({sorted(HEAVY)!r}) & set(sys.modules))
sys.argv = ["gptctl", *{words!r}]
try:
    main()
    code = 0
except SystemExit as end:
    code = end.code
print(json.dumps([code or 0, loaded, sorted(set({sorted(HEAVY)!r}) & set(sys.modules))]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], []]


def test_the_ledger_costs_no_heavy_import() -> None:
    program = f"import sys, orchestrator.ledger; print(sorted(set({sorted(HEAVY - {'sqlite3'})!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_programs_about_data_and_files_of_models_load_no_torch() -> None:
    """They run on small computers beside the data, and torch takes two seconds of processor to load."""
    about_data = [f"trainer.tokens.{name}" for name in ("convert", "inspect_tokens", "tokenizer", "verify")]
    names = [*about_data, "trainer.prepare", "trainer.corpus.overlap", "trainer.import_model", "trainer.export"]
    program = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_error_says_what_it_is_and_is_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    for each in error_classes():
        assert "__doc__" in vars(each) and each.__doc__, f"{each.__name__} has no docstring of its own"
        assert each.__name__ in tree, f"{each.__name__} is missing in the tree drawn at the top of errors.py"
        assert each.exit_code in range(1, 8)


def test_catch_all_stands_in_two_places_only() -> None:
    allowed = {"orchestrator/pipeline.py", "orchestrator/cli/failures.py"}
    found = {}
    for path, tree in sources("orchestrator", "trainer"):
        lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and _catches_all(node)]
        if lines and str(path) not in allowed:
            found[str(path)] = lines
    assert found == {}


def _catches_all(handler: ast.ExceptHandler) -> bool:
    """A bare except or `except Exception`; `except BaseException` counts unless it raises again at its end."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {each.id for each in caught if isinstance(each, ast.Name)}
    raises_again = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return handler.type is None or "Exception" in names or ("BaseException" in names and not raises_again)


@pytest.mark.parametrize("path", OLD_PYTHON, ids=lambda path: path.name)
def test_what_runs_on_a_machine_reads_as_python_3_8(path: Path) -> None:
    assert ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8)).body


def test_what_runs_on_a_machine_uses_only_what_python_3_8_has() -> None:
    command = [
        Path(sys.executable).with_name("vermin"),
        "--target=3.8-",
        "--no-tips",
        "--violations",
        *map(str, OLD_PYTHON),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_agent_and_the_contract_import_only_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"orchestrator", "trainer", "contract"}
    strangers = {}
    for path in OLD_PYTHON:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        strangers[path.name] = {name for name in names if name.split(".")[0] not in allowed}
    assert {name: found for name, found in strangers.items() if found} == {}

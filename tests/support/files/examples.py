"""Examples to fine-tune on, made of what Python ships: docstrings as answers, and modules told apart by a line."""

import inspect
import json
import os
import statistics
import string
import textwrap
from pathlib import Path
from typing import Any

from trainer.tasks.prepare_examples import ExamplesRequest, prepare_examples

MODULES = (os.path, statistics, textwrap, string, json, inspect)


def docstrings() -> list[dict[str, str]]:
    """Alpaca's form: what does this function do? The first line of its own documentation answers."""
    found = []
    for module in MODULES:
        for name, value in sorted(vars(module).items()):
            text = inspect.getdoc(value) if inspect.isfunction(value) and not name.startswith("_") else None
            if text:
                line = text.partition("\n")[0]
                found.append({"instruction": f"What does {name} do?", "input": "", "output": line})
    return found


def sources(count: int = 400) -> list[tuple[str, str]]:
    """(label, text): lines of Python code against lines of English documentation, from Python's own library."""
    folder = Path(os.__file__).parent
    code = [
        line.strip() for line in (folder / "argparse.py").read_text().splitlines() if "self." in line or "=" in line
    ]
    prose = [
        line.strip() for module in (textwrap, statistics, inspect, json) for line in (module.__doc__ or "").splitlines()
    ]
    license_text = [line.strip() for line in _license().splitlines()]
    english = [line for line in [*prose, *license_text] if len(line.split()) > 4 and "=" not in line]
    pairs = zip([line for line in code if len(line) > 12], english, strict=False)
    both = [each for one, other in pairs for each in (("code", one), ("prose", other))]
    return both[:count]


def _license() -> str:
    """The licence that the interpreter ships, else the longest docstrings there are."""
    found = Path(os.__file__).parent / "LICENSE.txt"
    return found.read_text(errors="replace") if found.is_file() else "\n".join(
        inspect.getdoc(value) or "" for value in vars(statistics).values()
    )  # fmt: skip


def prepared_rows(folder: Path, file: Path, **request: Any) -> dict[str, Any]:
    """dataset.json of the prepared examples, by the tokenizer `bytes`."""
    return prepare_examples(ExamplesRequest(**request), [file], folder, tokenizer="bytes", named=file.name)

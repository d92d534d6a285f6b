"""`gptctl data prepare`: text to token files, by the trainer's own program on this computer.

Example::

    prepare(Wish(["book.txt"], "bytes", "safetensors", ...), Path("data/book"), as_json=False)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.data_program import run_program
from orchestrator.cli.render import show_table
from orchestrator.cli.words import count, size
from orchestrator.core.errors import UserError

PYTHON_STDLIB = "python-stdlib"


@dataclass(frozen=True)
class Wish:
    """What to make of what."""

    sources: Sequence[str]
    tokenizer: str
    kind: str
    column: str
    separator: str
    documents: int | None
    hold_out_every: int
    shard_tokens: int
    workers: int | None
    invalid: str

    def arguments(self, paths: Sequence[str], to: Path) -> list[str]:
        """Of trainer.prepare. Paths are absolute, because the program starts elsewhere."""
        numbers = {
            "--documents": self.documents,
            "--hold-out-every": self.hold_out_every,
            "--shard-tokens": self.shard_tokens,
            "--workers": self.workers,
        }
        return [
            *(f"--source={path}" for path in paths),
            f"--named={' '.join(self.sources)}",
            f"--tokenizer={self.tokenizer}",
            f"--format={self.kind}",
            f"--column={self.column}",
            f"--separator={self.separator}",
            f"--invalid={self.invalid}",
            *(f"{name}={value}" for name, value in numbers.items() if value is not None),
            f"--to={to.absolute()}",
        ]


def prepare(wish: Wish, to: Path, *, as_json: bool) -> int:
    """Prepares, and prints dataset.json's content (`--json`: with the folder as `to`)."""
    paths = [_local(source) for source in wish.sources]
    last = run_program("prepare", wish.arguments(paths, to))
    dataset = json.loads((to / "dataset.json").read_text())
    if as_json:
        print(json.dumps({"to": str(to), "unchanged": last.get("event") == "unchanged", **dataset}, indent=1))
        return 0
    _show(dataset, to, unchanged=last.get("event") == "unchanged")
    return 0


def _local(source: str) -> str:
    if source == PYTHON_STDLIB:
        return source
    if "://" in source:
        raise UserError(f"{source} is not a local file", "download it first, or name a file, a folder or a glob")
    return os.path.abspath(Path(source).expanduser())


def _show(dataset: dict[str, Any], to: Path, *, unchanged: bool) -> None:
    rows = [
        (name, f"{entry['documents']:,}", f"{entry['tokens']:,}", size(entry["size_bytes"]))
        for name, entry in dataset["files"].items()
    ]
    show_table(("file", "documents", "tokens", "size"), rows, right=("documents", "tokens", "size"))
    print(
        f"{'unchanged' if unchanged else 'prepared'}: {to} holds {count(dataset['tokens'])} tokens of "
        f"{dataset['tokenizer']} ({dataset['vocab_size']:,} ids, {dataset['format']}, {dataset['dtype']})"
    )
    skipped = dataset["skipped"]
    if skipped["invalid_utf8"]:
        print(f"not UTF-8: {skipped['invalid_utf8']:,} ({skipped['policy']})")
    print(f'next: gptctl data inspect {to}, or in a recipe: data.source = "{to}"')

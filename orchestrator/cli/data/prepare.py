"""`gptctl data prepare`: turns text into token files, by the trainer's own program on this computer.

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

from orchestrator.cli.data.program import run_program
from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen.screen import show_progress, show_table, talk
from orchestrator.cli.screen.tables import Column
from orchestrator.core.formats import count, size
from orchestrator.datasets.downloads import Text, bring_text
from orchestrator.remote.transfer_progress import Transfer

PYTHON_STDLIB = "python-stdlib"


@dataclass(frozen=True)
class Wish:
    """What you typed after `gptctl data prepare`."""

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

    def arguments(self, found: Text, to: Path) -> list[str]:
        """Of trainer.prepare. Paths are absolute, because the program starts elsewhere."""
        numbers = {
            "--documents": self.documents,
            "--hold-out-every": self.hold_out_every,
            "--shard-tokens": self.shard_tokens,
            "--workers": self.workers,
        }
        return [
            *(f"--source={path}" for path in found.paths),
            f"--named={' '.join(self.sources)}",
            *([f"--revision={found.revision}"] if found.revision else []),
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
    last = run_program("prepare", wish.arguments(find(wish.sources), to))
    dataset = json.loads((to / "dataset.json").read_text())
    if as_json:
        print(json.dumps({"to": str(to), "unchanged": last.get("event") == "unchanged", **dataset}, indent=1))
        return 0
    _show(dataset, to, unchanged=last.get("event") == "unchanged")
    return 0


def find(sources: Sequence[str]) -> Text:
    """Paths of this computer for all sources; data from elsewhere is downloaded first, once per content."""
    found = [_find(source) for source in sources]
    revisions = " ".join(each.revision for each in found if each.revision)
    return Text([path for each in found for path in each.paths], revisions)


def _find(source: str) -> Text:
    if source == PYTHON_STDLIB:
        return Text([source])
    if "://" not in source:
        return Text([os.path.abspath(Path(source).expanduser())])
    with show_progress() as show:
        return bring_text(open_home(), source, lambda moved: show(show_download(moved)), talk)


def show_download(moved: Transfer) -> dict[str, object]:
    """The fields of a progress line."""
    return {
        "what": "download",
        "done": moved.bytes_done,
        "total": moved.bytes_total,
        "unit": "bytes",
        "rate": moved.rate_bytes_per_s,
        "eta_s": moved.eta_s,
    }


def held_out_words(dataset: dict[str, Any]) -> str:
    """How many documents are for validation; without any, what a run does."""
    held_out, every = dataset["split"].get("held_out", 0), dataset["split"]["held_out_every"]
    if held_out:
        return f"held out for validation: {held_out:,} of {dataset['documents']:,} documents"
    why = f"none of {dataset['documents']:,} documents has a hash that falls there" if every else "as you asked"
    why = "it is one document" if dataset["documents"] == 1 else why
    return f"held out for validation: nothing ({why}); a run validates on the end of its training tokens"


def _show(dataset: dict[str, Any], to: Path, *, unchanged: bool) -> None:
    rows = [
        (name, f"{entry['documents']:,}", f"{entry['tokens']:,}", size(entry["size_bytes"]))
        for name, entry in dataset["files"].items()
    ]
    show_table((Column("file"), Column("documents", True, 1), Column("tokens", True), Column("size", True)), rows)
    print(
        f"{'unchanged' if unchanged else 'prepared'}: {to} holds {count(dataset['tokens'])} tokens of "
        f"{dataset['tokenizer']} ({dataset['vocab_size']:,} ids, {dataset['format']}, {dataset['dtype']})"
    )
    print(held_out_words(dataset))
    skipped = dataset["skipped"]
    if skipped["invalid_utf8"]:
        print(f"not UTF-8: {skipped['invalid_utf8']:,} ({skipped['policy']})")
    print(f'next: gptctl data inspect {to}, or in a recipe: data.source = "{to}"')

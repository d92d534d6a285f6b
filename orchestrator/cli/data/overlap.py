"""`gptctl data overlap`: how many documents two datasets share, by the trainer's own program on this computer.

Example::

    overlap("data/train", "hf://me/test", tokenizer=None, part=None, as_json=False)
"""

from __future__ import annotations

import json
import time

from orchestrator.cli.data.prepare import tokens_here
from orchestrator.cli.data.program import run_program
from orchestrator.cli.open_ledger import open_home
from orchestrator.cli.screen.screen import show_table, talk
from orchestrator.cli.screen.tables import Column
from orchestrator.core.datasets import overlaps
from orchestrator.core.datasets.overlaps import CheckedOverlap
from orchestrator.core.formats import count, percent
from orchestrator.remote.whole_files import landing

COLUMNS = (
    Column("dataset"),
    Column("documents", right=True, leaves=2),
    Column("tokens", right=True),
    Column("in the other", right=True),
    Column("tokens in the other", right=True, leaves=1),
)


def overlap(a: str, b: str, tokenizer: str | None, part: str | None, *, as_json: bool) -> int:
    """Prints what they share, and notes it for plan, compare and the model card."""
    named = [f"--tokenizer={tokenizer}"] if tokenizer else []
    cut = [f"--slice={part}"] if part else []
    found = run_program("corpus.overlap", [str(tokens_here(a)), str(tokens_here(b)), *named, *cut])
    found.pop("event")
    mine = found["b"]
    against = f"{b} {part}" if part else b
    checked = CheckedOverlap(
        a, against, time.time(), mine["documents"], mine["shared_documents"], mine["tokens"], mine["shared_tokens"]
    )
    home = open_home()
    content = overlaps.added(home, checked)
    with landing(home / overlaps.FILE) as file:
        file.write(content)
    if as_json:
        print(json.dumps({**found, "a": {**found["a"], "path": a}, "b": {**mine, "path": against}}, indent=1))
        return 0
    rows = [
        (
            name,
            f"{each['documents']:,}",
            count(each["tokens"]),
            f"{each['shared_documents']:,} ({percent(each['shared_documents'] / each['documents'])})",
            percent(each["shared_tokens"] / each["tokens"]),
        )
        for name, each in ((a, found["a"]), (against, mine))
    ]
    show_table(COLUMNS, rows)
    talk(
        f"documents are parted by id {found['separator']} and compared by their first {found['compared_tokens']:,} ids"
    )
    if mine["shared_documents"]:
        talk(f'next: prepare the text again with [data.prepare] exclude = "{b}"')
    return 0

"""Finds runs by what a person remembers of them: a part of the id, the name, the recipe, the host, a label, the note.

Example: `matching(ledger.rows, "warmup", most=100)`
"""

from __future__ import annotations

from orchestrator.ledger.records import RunRecord
from orchestrator.ledger.rows import Rows

_TEXT = "lower(id || ' ' || coalesce(name, '') || ' ' || recipe || ' ' || host || ' ' || labels || coalesce(note, ''))"


def matching(rows: Rows, wanted: str, most: int) -> list[RunRecord]:
    """Newest first; every word of `wanted` must be there, in any case."""
    words = wanted.lower().split()
    shown = "json_extract(options, '$.forgotten_at') IS NULL"
    terms = " AND ".join([shown, *[f"instr({_TEXT}, ?) > 0"] * len(words)])
    return rows.select(RunRecord, f"SELECT * FROM runs WHERE {terms} ORDER BY created_at DESC LIMIT ?", *words, most)

"""Sweeps in the ledger: a sweep, its rentals and its runs are written together or not at all.

Example: `sweeps.find(ledger.rows, "interventions")`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.core.errors import UserError
from orchestrator.ledger import row_values
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord
from orchestrator.ledger.rows import Rows


@dataclass(frozen=True)
class SweepTerms:
    """What was agreed to."""

    baseline: str = ""
    """The arm that the others are compared with."""
    ceiling_usd: float | None = None
    on_failure: str = "skip"
    stop_step: int | None = None
    stop_margin: float | None = None
    digest: str = ""
    """Of the file's arms: the same file again is the same sweep."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """What you asked for beside the arms, by its key in the file. Empty: an older gptctl did not keep it."""


@dataclass(frozen=True)
class Sweep:
    """A sweep: a name for the runs that have its id as their group."""

    id: str
    name: str
    host: str
    created_at: float
    terms: SweepTerms = field(default=SweepTerms(), metadata={"column": "data"})


def add(
    rows: Rows, sweep: Sweep | None, rentals: Sequence[Rental], runs: Sequence[RunRecord], *, holds_none: bool = False
) -> None:
    """In one transaction; without a sweep: more runs of one that is there. holds_none: as long as it has no machine.

    Raises UserError, with nothing written, where another gptctl has added an arm of these, or a machine, at the same
    time.
    """
    with rows.writing() as connection:
        for run in runs if sweep is None else ():
            if (there := connection.execute(_UNFINISHED_TWIN, _twin_of(run)).fetchone()) is not None:
                raise UserError(
                    f"{there['id']} is this arm with this seed already: another gptctl added it at the same time",
                    f"gptctl sweep status {run.labels.get('sweep', '')}".strip(),
                )
        held = holds_none and runs and connection.execute(_HELD, (_twin_of(runs[0])[0], RENTAL_OPEN)).fetchone()
        if held or any(connection.execute(_REPLACED, (each.facts.replaces,)).fetchone() for each in rentals):
            raise UserError(
                "another gptctl rents a machine for this sweep at the same time", "repeat the command: it waits there"
            )
        if sweep is not None:
            connection.execute(*row_values.insert("sweeps", sweep))
        for rental in rentals:
            connection.execute(*row_values.insert("rentals", rental))
        for run in runs:
            connection.execute(*row_values.insert("runs", run))


_HELD = """
    SELECT 1 FROM runs JOIN rentals ON rentals.id = runs.rental_id
    WHERE json_extract(runs.options, '$.queue.group') = ? AND rentals.state = ?
"""
_REPLACED = "SELECT 1 FROM rentals WHERE json_extract(data, '$.replaces') = ?"
_UNFINISHED_TWIN = """
    SELECT id FROM runs WHERE state <> 'ended' AND json_extract(options, '$.queue.group') = ?
    AND json_extract(labels, '$.arm') = ? AND json_extract(labels, '$.seed') = ?
"""


def _twin_of(run: RunRecord) -> tuple[str | None, str | None, str | None]:
    group = run.facts.queue.group if run.facts.queue else None
    return group, run.labels.get("arm"), run.labels.get("seed")


def listed(rows: Rows) -> list[Sweep]:
    """Newest first."""
    return rows.select(Sweep, "SELECT * FROM sweeps ORDER BY created_at DESC, rowid DESC")


def find(rows: Rows, wanted: str | None) -> Sweep:
    """The newest of that name or id; None: the newest of all. Raises UserError."""
    found = [each for each in listed(rows) if wanted in (None, each.name, each.id)]
    if not found:
        what = "no sweeps yet" if wanted is None else f"no sweep {wanted!r}"
        raise UserError(what, "gptctl sweep run FILE --host HOST starts one")
    return found[0]


def runs_of(rows: Rows, sweep_id: str) -> list[RunRecord]:
    """In their order."""
    sql = "SELECT * FROM runs WHERE json_extract(options, '$.queue.group') = ? ORDER BY rowid"
    return rows.select(RunRecord, sql, sweep_id)

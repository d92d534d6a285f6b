"""A new attempt of a run, in one transaction: on another rental after its machine was taken away, the one way from
`ending` back; or on the same rental after it lost a node. And which runs a rental served, whatever rental they are on
by now.

Example: `attempts.begin(ledger.rows, run, rental, facts, step=400, now=time.time())`
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from orchestrator.core.events import Event
from orchestrator.core.facts.run_facts import RunFactChanges
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import row_values
from orchestrator.ledger.records import RENTAL_OPEN, Attempt, Rental, RunRecord
from orchestrator.ledger.rows import Rows

_THERE = """
    SELECT id FROM rentals WHERE id = ?1 OR (state = ?3 AND json_extract(data, '$.replaces') = ?2) ORDER BY id <> ?1
"""
_BEGIN = """
    UPDATE runs SET state = ?, outcome = NULL, cause = '', cause_code = NULL, stage = NULL, rental_id = ?, step = ?,
                    options = ?, ended_at = NULL WHERE id = ? AND state IN (?, ?) AND outcome = ?
"""


def begin(rows: Rows, run: RunRecord, rental: Rental, facts: RunFactChanges, *, step: int, now: float) -> None:
    """Writes the new rental, which several runs of a sweep may share, and puts the run on it in state planned, at the
    step where it continues; where another one is in place of the same rental by now, the run joins that. A run that did
    not end, or is not ending, as preempted stays as it is, and no rental is written."""
    with rows.writing() as connection:
        stored = connection.execute("SELECT options FROM runs WHERE id = ?", (run.id,)).fetchone()[0]
        changed = row_values.to_column(row_values.with_facts(RunRecord, stored, facts))
        there = connection.execute(_THERE, (rental.id, rental.facts.replaces, RENTAL_OPEN)).fetchone()
        if there is None:
            connection.execute(*row_values.insert("rentals", rental))
        rental_id = rental.id if there is None else there["id"]
        values = (State.PLANNED, rental_id, step, changed, run.id, State.ENDING, State.ENDED, Outcome.PREEMPTED)
        if not connection.execute(_BEGIN, values).rowcount:
            if there is None:
                connection.execute("DELETE FROM rentals WHERE id = ?", (rental.id,))
            return
        data = {"from": run.state.value, "to": State.PLANNED.value, "outcome": None, "rental": rental_id}
        event = Event("state_changed", now, run.stage, f"continues at step {step}", data)
        connection.execute(*row_values.insert_event(run.id, event))


_REGROUP = """
    UPDATE runs SET state = ?, stage = NULL, machine = ?, host_data = ?, plan = ?, step = ?, options = ?
    WHERE id = ? AND state NOT IN (?, ?)
"""
_END_ATTEMPT = "UPDATE attempts SET ended_at = ?, last_step = ? WHERE run_id = ? AND rental_id = ? AND ended_at IS NULL"
_REGROUP_RENTAL = """
    UPDATE rentals SET machine = ?, price_per_hour_usd = ?, instance_id = ?, address = ?, ends_at = ?, data = ?
    WHERE id = ?
"""


def regroup(rows: Rows, after: Attempt, run: RunRecord, rental: Rental, facts: RunFactChanges) -> bool:
    """Puts the run back to planned on its rental as they are from now on, at the step where the attempt `after` begins,
    and ends the one before. Whether it did: a run that is ending stays as it is."""
    column = row_values.to_column
    with rows.writing() as connection:
        stored = connection.execute("SELECT options FROM runs WHERE id = ?", (run.id,)).fetchone()[0]
        changed = column(row_values.with_facts(RunRecord, stored, facts))
        values = (State.PLANNED, run.machine, column(run.host_data), column(run.plan), after.from_step, changed, run.id)
        if not connection.execute(_REGROUP, (*values, State.ENDING, State.ENDED)).rowcount:
            return False
        now_held = (rental.instance_id, column(rental.address), rental.ends_at, column(rental.facts), rental.id)
        connection.execute(_REGROUP_RENTAL, (rental.machine, rental.price_per_hour_usd, *now_held))
        ended = (
            "UPDATE attempts SET ended_at = ?, last_step = ? WHERE run_id = ? AND rental_id = ? AND ended_at IS NULL"
        )
        connection.execute(ended, (after.started_at, run.step, run.id, rental.id))
        connection.execute(*row_values.insert("attempts", after))
        data = {"from": run.state.value, "to": State.PLANNED.value, "outcome": None, "rental": rental.id}
        event = Event("state_changed", after.started_at, run.stage, f"continues at step {after.from_step}", data)
        connection.execute(*row_values.insert_event(run.id, event))
        return True


_SERVED = """
    SELECT rental_id, run_id FROM stage_intervals WHERE rental_id IN (SELECT value FROM json_each(?1))
    UNION SELECT rental_id, id FROM runs WHERE rental_id IN (SELECT value FROM json_each(?1))
"""
_BY_ID = "SELECT * FROM runs WHERE id IN (SELECT value FROM json_each(?)) ORDER BY created_at DESC, rowid DESC"


def served(rows: Rows, rental_ids: Iterable[str]) -> dict[str, list[RunRecord]]:
    """The runs of each of these rentals, newest first: those that have gone on elsewhere, and forgotten ones, too."""
    with rows.reading() as connection:
        pairs = [(each[0], each[1]) for each in connection.execute(_SERVED, (json.dumps([*rental_ids]),))]
    rentals: dict[str, list[str]] = {}
    for rental_id, run_id in pairs:
        rentals.setdefault(run_id, []).append(rental_id)
    found: dict[str, list[RunRecord]] = {}
    for run in rows.select(RunRecord, _BY_ID, json.dumps([*rentals])):
        for rental_id in rentals[run.id]:
            found.setdefault(rental_id, []).append(run)
    return found

"""Rows of runs as they travel from one ledger to another: whole, and put in all or none.

Only one ledger drives a run. Its row says which: `options.driven_by` is empty in that one, and its
`options.driver_token` is higher than in every other. A row with a lower token never replaces one with a higher.

Example::

    rows = taken_out(ledger.rows, together(ledger.rows, [run.id]))
    put_in(other.rows, rows, token=2)
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.core.errors import UserError
from orchestrator.ledger import database
from orchestrator.ledger.row_values import Value
from orchestrator.ledger.rows import Rows

Row = Mapping[str, Value]
OF_RUNS = {
    "attempts": "run_id",
    "stage_intervals": "run_id",
    "events": "run_id",
    "rates": "run_id",
    "evaluations": "run_id",
}
NUMBERED = frozenset({"stage_intervals", "events"})
"""Tables whose `id` is a count of that ledger's own."""


_PAIRS = """
    SELECT runs.id, pairs.rental_id, json_extract(options, '$.queue.group') AS sweep FROM runs
    JOIN (SELECT id AS run_id, rental_id FROM runs UNION SELECT run_id, rental_id FROM attempts
          UNION SELECT run_id, rental_id FROM stage_intervals) AS pairs ON pairs.run_id = runs.id
    ORDER BY runs.rowid
"""
"""Each run with each of its rentals."""


@dataclass(frozen=True)
class Together:
    """Runs that one ledger drives or none of them: those of the same rentals and the same sweep."""

    runs: tuple[str, ...]
    rentals: tuple[str, ...]
    sweeps: tuple[str, ...]


def together(rows: Rows, run_ids: Iterable[str]) -> Together:
    """Everything that hangs together with these runs, in the order of the ledger: rentals of earlier attempts too."""
    runs, rentals, sweeps = set(run_ids), set[str](), set[str]()
    with rows.reading() as connection:
        known = connection.execute(_PAIRS).fetchall()
    grew = True
    while grew:
        before = len(runs), len(rentals), len(sweeps)
        for row in known:
            if row["id"] in runs or row["rental_id"] in rentals or row["sweep"] in sweeps:
                runs.add(row["id"])
                rentals |= {row["rental_id"]} - {None}
                sweeps |= {row["sweep"]} - {None}
        grew = before != (len(runs), len(rentals), len(sweeps))
    ordered = dict.fromkeys(row["id"] for row in known if row["id"] in runs)
    return Together(tuple(ordered), tuple(sorted(rentals)), tuple(sorted(sweeps)))


def taken_out(rows: Rows, these: Together) -> dict[str, list[dict[str, Value]]]:
    """Every row of them, by table."""
    wanted = {
        "rentals": ("id", these.rentals), "runs": ("id", these.runs), "sweeps": ("id", these.sweeps),
        "intents": ("rental_id", these.rentals), **{table: (key, these.runs) for table, key in OF_RUNS.items()},
    }  # fmt: skip
    found: dict[str, list[dict[str, Value]]] = {"version": [{"version": len(database.MIGRATIONS)}]}
    with rows.reading() as connection:
        for table, (key, ids) in wanted.items():
            sql = f"SELECT * FROM {table} WHERE {key} IN (SELECT value FROM json_each(?)) ORDER BY rowid"
            found[table] = [dict(row) for row in connection.execute(sql, (json.dumps(ids),))]
    return found


def put_in(rows: Rows, given: Mapping[str, Sequence[Row]], token: int) -> bool:
    """Writes them, driven from here under this token. False where that was done before: what is here is newer.

    Raises UserError for rows of another version of gptctl, or where a run here has a higher token.
    """
    version = given["version"][0]["version"] if given.get("version") else None
    if version != len(database.MIGRATIONS):
        raise UserError(
            f"the other gptctl keeps its ledger in version {version}, this one in {len(database.MIGRATIONS)}",
            "upgrade the older gptctl, then repeat the command",
        )
    with rows.writing() as connection:
        tokens = [_token(connection, str(run["id"])) for run in given["runs"]]
        if any(here > token for here in tokens):
            raise UserError(
                f"these runs were handed over since: token {max(tokens)} is here, and {token} was given",
                "gptctl status, and gptctl driver take RUN where they are driven",
            )
        if tokens and all(here == token for here in tokens):
            return False
        _write(connection, given, token)
        return True


def mark_given(rows: Rows, run_ids: Sequence[str], host: str | None, token: int) -> None:
    """From here on `host` drives these runs, and this ledger does not; None: this one does."""
    with rows.writing() as connection:
        for run_id in run_ids:
            connection.execute(
                "UPDATE runs SET options = json_set(options, '$.driven_by', ?1, '$.driver_token', ?2) WHERE id = ?3",
                (host, token, run_id),
            )


def highest_token(rows: Rows, run_ids: Sequence[str]) -> int:
    """The highest token of these runs here; 0 for those that were never handed over."""
    with rows.reading() as connection:
        return max((_token(connection, run_id) for run_id in run_ids), default=0)


def _token(connection: sqlite3.Connection, run_id: str) -> int:
    """-1 for a run that is not here."""
    sql = "SELECT coalesce(json_extract(options, '$.driver_token'), 0) FROM runs WHERE id = ?"
    row = connection.execute(sql, (run_id,)).fetchone()
    return -1 if row is None else int(row[0])


def _write(connection: sqlite3.Connection, given: Mapping[str, Sequence[Row]], token: int) -> None:
    for table in ("rentals", "runs", "sweeps"):
        for row in given.get(table, ()):
            _insert(connection, table, _driven_here(row, token) if table == "runs" else row, replaces=True)
    for rental in given["rentals"]:
        connection.execute("DELETE FROM intents WHERE rental_id = ?", (rental["id"],))
    for table, key in OF_RUNS.items():
        for run in given["runs"]:
            connection.execute(f"DELETE FROM {table} WHERE {key} = ?", (run["id"],))
    for table in ("intents", *OF_RUNS):
        for row in given.get(table, ()):
            own = {name: value for name, value in row.items() if not (name == "id" and table in NUMBERED)}
            _insert(connection, table, own, replaces=False)


def _driven_here(run: Row, token: int) -> Row:
    options = json.loads(str(run["options"]))
    options.pop("driven_by", None)
    return {**run, "options": json.dumps({**options, "driver_token": token})}


def _insert(connection: sqlite3.Connection, table: str, row: Row, *, replaces: bool) -> None:
    known = {str(each["name"]) for each in connection.execute(f"PRAGMA table_info({table})")}
    if not row.keys() <= known:
        raise UserError(f"unknown columns of {table}: {', '.join(sorted(row.keys() - known))}", "upgrade gptctl")
    names = list(row)
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != "id")
    then = f" ON CONFLICT (id) DO UPDATE SET {changes}" if replaces else ""
    marks = ", ".join("?" * len(names))
    connection.execute(
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}){then}", [row[name] for name in names]
    )

"""Reads and writes records in the ledger's tables: the only lines that run SQL of records, each call one transaction.

Example::

    rows = Rows(connection, path)
    rows.insert("runs", record)
    rows.select(RunRecord, "SELECT * FROM runs WHERE id = ?", record.id)
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from orchestrator.ledger import database, row_values

Record = TypeVar("Record")


@dataclass(frozen=True)
class Rows:
    """An open database; its trouble is raised as the errors of database.translated."""

    connection: sqlite3.Connection
    path: Path
    turn: threading.RLock = field(default_factory=threading.RLock)
    """Threads take turns: what reads and then writes holds it over both."""

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries that return no records."""
        with self.turn, database.translated(self.path):
            yield self.connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction, which ends with the block."""
        with self.turn, database.translated(self.path), database.transaction(self.connection) as connection:
            yield connection

    def close(self) -> None:
        """Closes the connection once no other thread is inside it: SQLite under a closed one ends the process."""
        with self.turn:
            self.connection.close()

    def select(self, kind: type[Record], sql: str, *values: row_values.Value) -> list[Record]:
        """All rows as records."""
        with self.reading() as connection:
            return [row_values.decode(kind, row) for row in connection.execute(sql, values)]

    def execute(self, sql: str, *values: row_values.Value) -> int:
        """How many rows changed."""
        with self.writing() as connection:
            return connection.execute(sql, values).rowcount

    def insert(self, table: str, record: object, how: str = "INSERT", **others: row_values.Value) -> None:
        """Adds a record; `how`: INSERT OR REPLACE, for example. `others`: columns that the record lacks."""
        sql, values = row_values.insert(table, record, **others)
        self.execute(sql.replace("INSERT", how, 1), *values)

    def update(
        self, table: str, kind: type, key: dict[str, row_values.Value], fields: dict[str, object],
        frozen: frozenset[str], *, facts: Mapping[str, object] | None = None,
    ) -> int:  # fmt: skip
        """Sets these fields and facts, none of the `frozen`, where `key` matches; how many rows that were."""
        where = " AND ".join(f"{name} = ?" for name in key)
        with self.writing() as connection:
            if facts:
                column = row_values.columns(kind)["facts"]
                row = connection.execute(f"SELECT {column} FROM {table} WHERE {where}", [*key.values()]).fetchone()
                fields["facts"] = row_values.with_facts(kind, row[0], facts) if row else None
            changes, values = row_values.assignments(kind, fields, frozen)
            return connection.execute(f"UPDATE {table} SET {changes} WHERE {where}", [*values, *key.values()]).rowcount

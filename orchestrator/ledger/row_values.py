"""Between records and rows: a field is a column; dicts and dataclasses are JSON, enums and flags are their values.

It must not know any table: what it needs it reads from the record's own type hints. A column has its field's name,
unless the field's metadata has another under `column`.

    sql, values = insert("runs", record)
    record = decode(RunRecord, row)
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, lru_cache, partial
from typing import Any, TypeVar

from orchestrator.core import typed_json
from orchestrator.core.events import Event

Record = TypeVar("Record")
Value = str | int | float | None


def to_column(value: object) -> Value:
    """A record's value as SQLite stores it."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return int(value)
    if dataclasses.is_dataclass(value):
        value = value.to_json() if hasattr(value, "to_json") else typed_json.encode(value)
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_jsonable)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"the ledger stores no {type(value).__name__}: {value!r}")


def _jsonable(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


@cache
def columns(kind: Any) -> Mapping[str, str]:
    """Field name to column name."""
    return {item.name: item.metadata.get("column", item.name) for item in dataclasses.fields(kind)}


def insert(table: str, record: Any, **others: Value) -> tuple[str, list[Value]]:
    """The INSERT statement for a record, and its values. others: columns that the record has no field for."""
    empty = {item.name: item.metadata.get("none") for item in dataclasses.fields(record)}
    values = {
        column: empty[name] if getattr(record, name) is None else to_column(getattr(record, name))
        for name, column in columns(typing.cast(Any, type(record))).items()
    } | others
    marks = ", ".join("?" * len(values))
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", [*values.values()]


def insert_event(run_id: str, event: Event) -> tuple[str, list[Value]]:
    """The statement and its values for one more event of a run."""
    sql = "INSERT INTO events (run_id, kind, time, stage, text, data) VALUES (?, ?, ?, ?, ?, ?)"
    return sql, [run_id, event.kind, event.time, event.stage, event.text, to_column(event.data)]


def assignments(kind: type, changes: Mapping[str, object], frozen: frozenset[str]) -> tuple[str, list[Value]]:
    """`a = ?, b = ?` and the values. Raises TypeError for a field that `kind` has not, or that must not change."""
    known = columns(kind)
    strangers = sorted(set(changes) - (known.keys() - frozen))
    if strangers or not changes:
        raise TypeError(f"{kind.__name__}: cannot update {', '.join(strangers) or 'nothing'}")
    return ", ".join(f"{known[name]} = ?" for name in changes), [to_column(value) for value in changes.values()]


def with_facts(kind: type, stored: str, changes: Mapping[str, object]) -> dict[str, object]:
    """The stored `facts` of a record of this kind, changed. Keys that this version does not know stay."""
    facts_kind = _facts_kind(kind)
    before = json.loads(stored)
    facts = dataclasses.replace(typed_json.decode(facts_kind, before, lenient=True), **changes)
    known = typed_json.keys(facts_kind)
    return {**{key: value for key, value in before.items() if key not in known}, **facts.to_json()}


@cache
def _facts_kind(kind: Any) -> Any:
    return typing.get_type_hints(kind)["facts"]


def decode(kind: type[Record], row: Mapping[str, object]) -> Record:
    """The record of a row. Columns the record has no field for are ignored. Rows that are the same give one record:
    what it holds is never changed in place."""
    found: Record = _record(typing.cast(Any, kind), tuple(row.keys()), tuple(row))
    return found


@lru_cache(maxsize=256)  # a driver reads its run many times between two changes of it
def _record(kind: Any, names: tuple[str, ...], values: tuple[object, ...]) -> Any:
    row = dict(zip(names, values, strict=True))
    return kind(**{name: read(row[column]) for name, column, read in _readers(kind)})


@cache
def _readers(kind: Any) -> tuple[tuple[str, str, Callable[[Any], Any]], ...]:
    """One reader per field, worked out once per type: a status of 1,000 runs decodes 33,000 columns."""
    hints = typing.get_type_hints(kind)
    return tuple((name, column, _reader(hints[name])) for name, column in columns(kind).items())


def _reader(hint: Any) -> Callable[[Any], Any]:
    options = [item for item in typing.get_args(hint) or (hint,) if item is not type(None)]
    if hint is bool:
        return bool
    if typing.get_origin(hint) is dict:
        return json.loads
    stored = options[0]
    if isinstance(stored, type) and dataclasses.is_dataclass(stored):
        return partial(_object, stored, type(None) in typing.get_args(hint))
    if isinstance(options[0], type) and issubclass(options[0], Enum):
        enum = options[0]
        return lambda value: None if value is None else enum(value)
    return _same


@lru_cache(maxsize=512)  # the values are frozen, and a driver reads its run many times a second
def _object(kind: Any, optional: bool, text: str) -> Any:
    """A dataclass from its column; None for one that may be None and cannot be read."""
    try:
        return typed_json.decode(kind, json.loads(text), lenient=True)
    except typed_json.WrongJson:
        if not optional:
            raise
        return None


def _same(value: Any) -> Any:
    return value

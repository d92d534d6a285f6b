"""JSON objects as frozen dataclasses, and back: the one place where JSON that was stored or received becomes values.

A field's key is its name, unless `stored_as` gives another; the keys of a `flat` field stand beside those of the
object around it. Keys that no field has are ignored.

    @dataclass(frozen=True)
    class Bill:
        cost_usd: float
        audited: bool = False

    decode(Bill, {"cost_usd": 2.65, "from_a_later_version": 1})     # Bill(2.65)
    decode(Bill, {"cost_usd": "much"})                              # raises WrongJson: cost_usd: "much" is not a number
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
Read = Callable[[Any], Any]

flat = types.MappingProxyType({"flat": True})
"""Metadata of a field whose own fields are stored beside it."""


def stored_as(key: str) -> dict[str, str]:
    """Metadata of a field that is stored under another name."""
    return {"key": key}


class WrongJson(ValueError):
    """A key is missing or has a value of another type. Its text names the key."""


def parse(text: str | bytes) -> Any:
    """The JSON value of a text that a machine, a store or a file gave. Raises WrongJson for anything else: no text of
    whatever depth, length or encoding raises another error. A lone surrogate, which no file and no screen takes,
    becomes `?`."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise WrongJson("nested too deeply") from None
    except ValueError as error:
        raise WrongJson(str(error)) from None
    mark = "\\ud" if isinstance(text, str) else b"\\ud"
    if mark in text.lower():  # type: ignore[operator]
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


class _Field(NamedTuple):
    name: str
    key: str
    read: Read
    flat: bool
    required: bool


def decode(kind: type[T], value: object, *, lenient: bool = False) -> T:
    """The dataclass `kind` from a JSON object. Missing keys take their defaults. Raises WrongJson for a wrong type, or
    for a missing key without a default.

    lenient: a value of a wrong type counts as missing, at every depth.
    """
    if not isinstance(value, Mapping):
        raise WrongJson(f"{_shown(value)} is not an object")
    found = {}
    for item in _fields(typing.cast(Any, kind), lenient):
        if not item.flat and item.key not in value:
            if item.required:
                raise WrongJson(f"{item.key} is missing")
            continue
        try:
            found[item.name] = item.read(value if item.flat else value[item.key])
        except WrongJson as error:
            if item.required or not (lenient or item.flat):
                raise WrongJson(str(error) if item.flat else f"{item.key}: {error}") from None
    return kind(**found)


def encode(record: object) -> dict[str, Any]:
    """The JSON object of a dataclass."""
    assert dataclasses.is_dataclass(record)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if not item.metadata.get("flat"):
            found[item.metadata.get("key", item.name)] = _plain(value)
        elif value is not None:
            found |= encode(value)
    return found


@cache
def keys(kind: type) -> frozenset[str]:
    """Every key that `encode` may write for this dataclass."""
    found: set[str] = set()
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if item.metadata.get("flat"):
            found |= keys(next(part for part in _parts(hints[item.name]) if part is not type(None)))
        else:
            found.add(item.metadata.get("key", item.name))
    return frozenset(found)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


@cache
def _fields(kind: Any, lenient: bool) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(kind)
    return tuple(
        _Field(
            item.name,
            item.metadata.get("key", item.name),
            _reader(hints[item.name], lenient),
            bool(item.metadata.get("flat")),
            item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING,
        )
        for item in dataclasses.fields(kind)
    )


def _parts(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _reader(hint: Any, lenient: bool) -> Read:
    parts = _parts(hint)
    if type(None) in parts:
        (inner,) = (part for part in parts if part is not type(None))
        return partial(_optional, _reader(inner, lenient))
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and inside[1:] != (...,):
        return partial(_row, tuple(_reader(each, lenient) for each in inside))
    if origin in (tuple, Sequence):
        return partial(_list, _reader(inside[0], lenient))
    if origin in (dict, Mapping):
        return partial(_object, _reader(inside[1], lenient))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return partial(decode, hint, lenient=lenient)
    return partial(_value, hint)


def _optional(read: Read, value: object) -> object:
    return None if value is None else read(value)


def _row(reads: tuple[Read, ...], value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple) or len(value) != len(reads):
        raise WrongJson(f"{_shown(value)} is not a list of {len(reads)}")
    return tuple(read(item) for read, item in zip(reads, value, strict=True))


def _list(read: Read, value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise WrongJson(f"{_shown(value)} is not a list")
    return tuple(map(read, value))


def _object(read: Read, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise WrongJson(f"{_shown(value)} is not an object")
    return {str(key): read(item) for key, item in value.items()}


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _value(kind: Any, value: object) -> object:
    """The value itself, if it is of that type: a bool is not a number here, and every whole number is a float."""
    if kind in (object, Any) or (type(value) is kind or (kind is float and type(value) is int)):
        return value
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError as error:
            raise WrongJson(str(error)) from None
    raise WrongJson(f"{_shown(value)} is not {WORDS.get(kind, kind)}")


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."

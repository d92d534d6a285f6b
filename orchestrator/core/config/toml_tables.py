"""TOML files as validated, frozen values: what recipe and inventory have in common.

Validation is strict (a string is never taken for a number, NaN for a float) and closed (an unknown key is an error that
names the nearest known one). It must not know what any table is for.

Example::

    class Box(Table):
        width_m: float = 1.0
        "Outer width."
    box = build(Box, read_toml(path, "box"), "box.toml")
"""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from orchestrator.core.errors import UserError
from orchestrator.core.suggest import did_you_mean

SIZE_LIMIT_BYTES = 1024 * 1024
"""No recipe or inventory is larger; a data set named by mistake must not be read into memory."""
MOST_PROBLEMS = 8

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
RECIPE_NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$"


def _without_control_characters(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must not contain a newline or another control character")
    return text


Line = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(_without_control_characters)]
"""Text on one line, such as a path, a URI or an address."""
Fraction = Annotated[float, Field(ge=0, le=1)]
PricePerHourUsd = Annotated[float, Field(ge=0, le=10_000)]
"""USD per hour for the whole machine, before tax; the dearest machine on sale costs about a hundred."""


class Table(BaseModel):
    """A TOML table. The string under a field is its line in the reference page."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


T = TypeVar("T", bound=Table)


def read_toml(path: Path, kind: str) -> dict[str, object]:
    """The file as a dict. `kind` (recipe, inventory) is for the message of the UserError when it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as error:
        raise UserError(f"{kind} {path}: cannot be read: {error.strerror}") from error
    if len(content) > SIZE_LIMIT_BYTES:
        raise UserError(f"{kind} {path}: larger than 1 MiB, so it is not a {kind}", hint="check the path")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{kind} {path}: not valid TOML: {error}", hint="fix the file at that place") from error
    except RecursionError:
        raise UserError(f"{kind} {path}: nested too deeply", hint="no key needs more than a few brackets") from None


def build(model: type[T], table: Mapping[str, object], source: str) -> T:
    """Validates a table. Raises UserError with one line per problem: `source: key: what is wrong, got VALUE`."""
    try:
        # By way of JSON: only there strict validation takes a list for a tuple and 1 for 1.0, and nothing else.
        return model.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        lines = list(dict.fromkeys(_problems(model, table, error)))
        more = [f"and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
        text = "\n".join(f"{source}: {line}" for line in lines[:MOST_PROBLEMS] + more)
        raise UserError(text, hint=f"fix {'these lines' if len(lines) > 1 else 'this line'} of {source}") from error


def merge(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """`above` laid over `below`: tables merge key by key, everything else (lists too) is replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _problems(model: type[BaseModel], table: Mapping[str, object], error: ValidationError) -> Iterator[str]:
    """One line per wrong key. A value that fits none of several types gets one line with all of them."""
    found: dict[str, tuple[list[str], object]] = {}
    for item in error.errors(include_url=False, include_context=False):
        key = _dotted(table, item["loc"], missing=item["type"] == "missing")
        text = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if item["type"] == "extra_forbidden":
            text = "unknown key" + did_you_mean(str(item["loc"][-1]), _known_keys(model, item["loc"][:-1]))
        if item["type"] == "string_pattern_mismatch":
            text = f"{item['msg'].removeprefix('String ')} (letters, digits, `_`, `.` and `-`)"
        if item["type"] in ("too_long", "too_short"):
            text = f"must be a list of another length ({item['msg'].lower()})"
        found.setdefault(key, ([], item["input"]))[0].append(text)
    for key, (texts, value) in found.items():
        shown = "" if isinstance(value, dict) or texts[0].startswith("unknown key") else f", got {_short(value)}"
        yield (f"{key}: " if key else "") + " or ".join(dict.fromkeys(texts)) + shown


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _dotted(table: object, location: tuple[int | str, ...], missing: bool) -> str:
    """The key as it stands in the file, without the branches of unions that pydantic's location also names."""
    parts: list[str] = []
    for part in location:
        if isinstance(table, Mapping) and part in table:
            table = table[str(part)]
        elif isinstance(table, list) and isinstance(part, int) and part < len(table):
            table = table[part]
        elif not missing:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the table at `location` inside `model`."""
    current: type[BaseModel] | None = model
    for part in location:
        field = current.model_fields.get(str(part)) if current else None
        if field is not None:
            current = _table_in(field.annotation)
    return list(current.model_fields) if current else []


def _table_in(annotation: object) -> type[BaseModel] | None:
    """The Table class inside an annotation such as `Validation | None` or `dict[str, MachineRow]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_table_in(argument) for argument in typing.get_args(annotation))
    return next((table for table in inner if table is not None), None)

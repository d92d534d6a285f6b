"""Holds what `gptctl ... --json` printed against `gptctl schema`: a key that no schema has is a failure here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from orchestrator.cli.schemas.schema import FAILURE, OUTPUTS, schema_of

VARIANTS = {"--reconcile": "cost --reconcile", "--drill": "check --drill", "--install-timer": "orphans --install-timer"}
GROUPS = ("sweep", "data", "runs")


def check_output(arguments: Sequence[str], code: int, stdout: str) -> None:
    """Raises AssertionError. Says nothing of a command without --json, or one that printed nothing."""
    own = list(arguments[: list(arguments).index("--")] if "--" in arguments else arguments)
    if "--json" not in own or not stdout.strip() or {"-w", "--watch", "-f"} & set(own):
        return
    found = json.loads(stdout)
    name = FAILURE if isinstance(found, dict) and set(found) == {"error"} else _command(own)
    problems = [f"{'/'.join(map(str, each.absolute_path))}: {each.message}" for each in _rules(name).iter_errors(found)]
    assert problems == [], f"gptctl {' '.join(own)} differs from its schema: {problems[:5]}"
    assert name != FAILURE or found["error"]["exit_code"] == code


def _command(arguments: Sequence[str]) -> str:
    has_inner = arguments[0] in GROUPS and not arguments[1].startswith("-")
    words = " ".join(arguments[: 1 + has_inner])
    return next((name for option, name in VARIANTS.items() if option in arguments), words)


@cache
def _rules(name: str) -> Draft202012Validator:
    assert name in OUTPUTS, f"gptctl {name} has --json and no schema: add it to orchestrator/cli/schemas"
    return Draft202012Validator(_closed(schema_of(name)))


def _closed(schema: Any) -> Any:
    """The same, with no key allowed that it does not name."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_object = closed.get("type") == "object" and "properties" in closed and isinstance(closed["properties"], dict)
    return {"additionalProperties": False, **closed} if is_object else closed

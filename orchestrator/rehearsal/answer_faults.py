"""Lies about whole answers: what the cloud sends instead of the truth, before an act or after it.

Example: `stop_before(faults, "list")` -> an Answer with status 429 when `429@list` is armed
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from orchestrator.rehearsal.faults import Faults
from orchestrator.rehearsal.refusal import internal

GIANT_BYTES = 1 << 30
ELSEWHERE = "http://127.0.0.2:9/stolen"
"""Another host than the API's, where nothing listens: a client that follows it sends its key there."""


@dataclass(frozen=True)
class Answer:
    """What the server sends."""

    status: int
    body: Any
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    """Instead of the body as JSON."""
    padding_bytes: int = 0
    """Spaces before the body, which stays valid JSON."""


class Dropped(Exception):
    """Closes the connection without an answer."""


ODD = {
    "html": Answer(200, None, raw=b"<!DOCTYPE html><title>503</title><h1>Service temporarily unavailable</h1>"),
    "error-in-200": Answer(200, internal().body),
}
"""What the API answers to everything while one of these lasts."""
BEFORE = ("429", "500", "timeout-before-effect", "unknown-error-code", "redirect")
AFTER = ("timeout-after-effect", "500-after-effect", "wrong-types", "broken-body", "giant-answer")


def stop_before(faults: Faults, operation: str) -> Answer | None:
    """The answer of a lie that keeps the act from happening; None: no such lie is armed. Raises Dropped."""
    fault = faults.first(BEFORE, operation)
    if fault is None:
        return next((answer for name, answer in ODD.items() if faults.during(name)), None)
    if fault.name == "timeout-before-effect":
        raise Dropped
    if fault.name == "429":
        error = {"code": "global/too-many-requests", "message": "Too many requests."}
        return Answer(429, {"error": error}, (("Retry-After", "1"),))
    if fault.name == "unknown-error-code":
        return Answer(400, {"error": {"code": "global/mercury-retrograde", "message": "Not today."}})
    if fault.name == "redirect":
        return Answer(302, {}, (("Location", ELSEWHERE),))
    return Answer(500, internal().body)


def spoil(faults: Faults, operation: str, body: Any) -> Answer:
    """The true answer, or an armed lie in its place. Raises Dropped."""
    fault = faults.first(AFTER, operation)
    if fault is None:
        return Answer(200, body)
    if fault.name == "timeout-after-effect":
        raise Dropped
    if fault.name == "wrong-types":
        return Answer(200, _with_wrong_types(body))
    if fault.name == "broken-body":
        text = json.dumps(body).encode()
        return Answer(200, None, raw=text[: len(text) // 2])
    if fault.name == "giant-answer":
        return Answer(200, body, padding_bytes=GIANT_BYTES)
    return Answer(500, internal().body)


def _with_wrong_types(value: Any) -> Any:
    """Numbers as text, text as numbers, empty lists as null, at every depth."""
    if isinstance(value, dict):
        return {key: _with_wrong_types(inner) for key, inner in value.items()} or "nothing"
    if isinstance(value, list):
        return [_with_wrong_types(inner) for inner in value] or None
    return str(value) if isinstance(value, (int, float)) else 17

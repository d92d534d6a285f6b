"""What a caller asks, field by field: of the right type, or refused. Nothing of a request is used unchecked.

Example: `seconds({"grace_s": 300}, "grace_s")`  # 300.0
"""

from __future__ import annotations

from typing import Mapping

from ..contract.names import Code, JobName
from ..system.paths import Places, checked_run
from ..system.refusal import Refusal
from . import jobs

Request = Mapping[str, object]
MOST_S = 1e9


def seconds(request: Request, key: str, default: float | None = None) -> float:
    """A duration of zero or more."""
    value = request.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MOST_S:
        raise Refusal(Code.BAD_REQUEST, "%s must be a number of seconds, got %r" % (key, value))
    return float(value)


def text(request: Request, key: str) -> str | None:
    """A text, or None where there is none."""
    value = request.get(key)
    if value is not None and not isinstance(value, str):
        raise Refusal(Code.BAD_REQUEST, "%s must be a text, got %r" % (key, value))
    return value


def mapping(request: Request, key: str) -> Mapping[str, object]:
    """An object; empty where there is none."""
    value = request.get(key) or {}
    if not isinstance(value, dict):
        raise Refusal(Code.BAD_REQUEST, "%s must be an object, got %r" % (key, value))
    return value


def find_job(paths: Places, request: Request) -> jobs.Job:
    """The job that `run`, `job` and perhaps `digest` name. Raises Refusal where there is none."""
    run = checked_run(request.get("run"))
    return jobs.find(paths, run, text(request, "job") or JobName.TRAIN, text(request, "digest"))

"""What a machine says about storing its checkpoints, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAFE = "safe"
"""The store has everything that is kept."""


@dataclass(frozen=True)
class StoreState:
    """`state` is starting, waiting, uploading, safe, trouble or needs-input; `problem` says what is wrong."""

    uri: str
    state: str = "starting"
    problem: str | None = None
    safe_step: int | None = None
    """The newest step that is verified in the store."""


def reported_store(uri: str, status: Mapping[str, Any] | None) -> StoreState:
    """The state after the machine's own answer; `starting` while it says nothing."""
    answer = status or {}
    safe = [int(step) for step in answer.get("safe") or []]
    return StoreState(uri, str(answer.get("state") or "starting"), answer.get("problem"), max(safe, default=None))

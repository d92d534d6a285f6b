"""What a machine says about storing its checkpoints, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.agent.contract.answers import StoreStatus


@dataclass(frozen=True)
class StoreState:
    """`state` is starting, waiting, uploading, safe, trouble or needs-input; `problem` says what is wrong."""

    uri: str
    state: str = "starting"
    problem: str | None = None
    safe_step: int | None = None
    """The newest step that is verified in the store."""


def reported_store(uri: str, status: StoreStatus) -> StoreState:
    """The state after the machine's own answer."""
    return StoreState(uri, status["state"], status["problem"], max(status["safe"], default=None))

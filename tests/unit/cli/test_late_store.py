"""`gptctl resume RUN --store URI`: what cannot be is refused, and nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.runs import late_store
from orchestrator.core.errors import RunLocked, UserError
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.run_lock import RunLock
from orchestrator.stages.context import RunContext
from tests.support.machines.lying_account import LyingAccount, rented

STORE = "s3://bucket/models"


def ended(context: RunContext) -> None:
    context.ledger.set_state(context.run_id, State.ENDING, outcome=Outcome.FINISHED)
    context.ledger.set_state(context.run_id, State.ENDED)


def given_back(context: RunContext) -> None:
    context.ledger.update_rental(context.rental.id, state="released")


def stores_elsewhere(context: RunContext) -> None:
    context.ledger.update_run(context.run_id, host_data={**context.run.host_data, "checkpoint_store": "s3://mine/x"})


def nothing(context: RunContext) -> None:
    """The run prepares."""


@pytest.mark.parametrize(
    ("before", "uri", "words"),
    [
        (ended, STORE, "given back and stores nothing any more"),
        (given_back, STORE, "given back and stores nothing any more"),
        (stores_elsewhere, STORE, "stores its checkpoints in s3://mine/x"),
        (nothing, "ssh://attic/models", "a home box is named before the run begins"),
        (nothing, "ftp://box/models", "machines cannot write there"),
        (nothing, "models", "machines cannot write there"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: object, uri: str, words: str
) -> None:
    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        assert callable(before)
        before(context)
        known = context.run.host_data
        with pytest.raises(UserError, match=words):
            late_store.add_store(context.ledger, context.run, uri)
        assert context.run.host_data == known


def test_a_run_that_another_gptctl_drives_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_store.preflight, "check", lambda *_, **__: None)
    monkeypatch.setattr(late_store, "storages", lambda *_: lambda uri: None)
    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        with RunLock.acquire(context.home, context.run_id), pytest.raises(RunLocked):
            late_store.add_store(context.ledger, context.run, STORE)
        assert context.run.host_data["checkpoint_store"] is None
        late_store.add_store(context.ledger, context.run, STORE)
        assert context.run.host_data["checkpoint_store"] == STORE, "it does not train yet: its launch begins with it"
        late_store.add_store(context.ledger, context.run, STORE)

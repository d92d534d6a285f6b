"""A training that nothing here knows of: the machine is asked before it is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import Unreachable
from orchestrator.core.facts.run_facts import DataOnMachine, Synced
from orchestrator.stages import fetch
from orchestrator.stages.context import RunContext
from tests.support.machines.lying_account import LyingAccount, rented


@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("jobs", [{"train": {}}, {"sync": {}}, None])
def test_a_start_that_was_not_noted_is_found_on_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced: bool, jobs: dict[str, Any] | None
) -> None:
    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        launched(context, synced=synced)
        monkeypatch.setattr(fetch, "machine_status", lambda _: jobs and {"jobs": jobs})
        trained = synced and jobs is not None and "train" in jobs
        assert fetch._trained(context) is trained
        assert len(context.ledger.attempts(context.run_id)) == trained


def test_a_machine_that_does_not_answer_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: RunContext) -> None:
        raise Unreachable("no answer")

    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        launched(context, synced=True)
        monkeypatch.setattr(fetch, "machine_status", silent)
        with pytest.raises(Unreachable):
            fetch._trained(context)


def launched(context: RunContext, *, synced: bool) -> None:
    """As far as just before the training."""
    context.set_rental_facts(reached=context.now())
    if synced:
        context.set_run_facts(synced=Synced(source="/x/source", data=DataOnMachine(("train.bin",))))

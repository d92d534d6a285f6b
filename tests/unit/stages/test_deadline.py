"""The deadline of a machine that no list shows: lists may be empty, and only the word on its id says that it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import MachineUnfit
from orchestrator.stages.machine import deadline
from tests.support.machines.lying_account import LyingAccount, rented


def test_an_empty_list_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount(hidden=True)
    with rented(tmp_path, account, monkeypatch) as context:
        context.host = context.host.model_copy(update={"guard": "watcher"})
        deadline._set(context, account.now + 3600)
        assert context.rental.ends_at == account.deadlines[0]


def test_a_machine_whose_provider_says_that_it_ended_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount(hidden=True)
    with rented(tmp_path, account, monkeypatch) as context:
        account.end("i-1")
        with pytest.raises(MachineUnfit, match="says that it ended"):
            deadline._set(context, account.now + 3600)

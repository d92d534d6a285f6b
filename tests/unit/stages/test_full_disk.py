"""Release while nothing can be written here: the machine is named, and with --force its end is ordered."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import ProviderError, StillBilling, UserError
from orchestrator.ledger.ledger import Ledger
from orchestrator.runs import release
from tests.support.machines.lying_account import LyingAccount, rented


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_keeps_no_machine_alive_that_you_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    account = LyingAccount()

    def full(*_: object, **__: object) -> None:
        raise UserError("the disk is full", "free some space")

    with rented(tmp_path, account, monkeypatch) as context:
        monkeypatch.setattr(release, "open_context", lambda *_: context)
        monkeypatch.setattr(Ledger, "update_run", full)
        with pytest.raises(StillBilling, match=r"the disk is full.*i-1") as raised:
            release.release_run(tmp_path, context.run_id, lambda event: None, force=force)
    assert account.orders == ["i-1"] * force
    assert raised.value.hint.endswith(f"gptctl release {context.run_id}{' --force' if force else ''}")


def test_of_several_machines_each_is_ordered_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount()
    refusals = [ProviderError("status 500")]

    def ends(instance_id: str) -> None:
        if refusals:
            raise refusals.pop()

    account.on_end = ends
    with rented(tmp_path, account, monkeypatch) as context:
        monkeypatch.setattr(type(context), "machines", (context, context))
        error = release._unwritten(context, UserError("the disk is full", "free some space"), force=True)
    assert account.orders == ["i-1", "i-1"] and "status 500" in error.message

"""The deadline of a machine that no list shows: lists may be empty, and only the word on its id says that it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import MachineUnfit
from orchestrator.stages.machine import deadline
from orchestrator.stages.machine.bounds import rental_budget_s
from orchestrator.stages.machine.purchase import buy_somewhere
from tests.support.machines.lying_account import LyingAccount, rented
from tests.support.machines.seller import REGIONS, Seller


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


@pytest.mark.parametrize("hours", [0, 10])
def test_hours_without_capacity_take_nothing_from_what_was_agreed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """--wait: the machine's own time begins when it is ordered, and does not move with later ones."""
    seller = Seller(sold_out={*REGIONS})
    with rented(tmp_path, seller, monkeypatch, None, 2) as context:
        budget_s = rental_budget_s(context)
        assert budget_s is not None
        seller.sleep(hours * 3600)
        assert deadline.budget_deadline(context) == seller.now + budget_s
        seller.sold_out.clear()
        ordered_at = seller.now
        buy_somewhere(context)
        seller.sleep(600)
        assert deadline.budget_deadline(context) == pytest.approx(ordered_at + budget_s, abs=60)
        assert all(request.ends_at >= ordered_at for request in seller.asked)

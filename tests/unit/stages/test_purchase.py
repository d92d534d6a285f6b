"""Orders that were refused, and the machine that was bought all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import NoCapacity
from orchestrator.core.ports import Instance, LaunchRequest, Offer
from orchestrator.stages.machine import purchase
from tests.support.machines.lying_account import MACHINE, LyingAccount, machine_of, rented


@pytest.mark.parametrize("bought", [True, False])
def test_a_refused_order_that_bought_is_taken_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bought: bool
) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch, None) as context:

        def refuses(request: LaunchRequest) -> Instance:
            if bought:
                account.rows["i-2"] = machine_of(context, "i-2", intent_id=request.intent_id)
            raise NoCapacity("no capacity")

        monkeypatch.setattr(account, "acquire", refuses, raising=False)
        offer = Offer("lambda", MACHINE, 15.92, region="us-west-1", sku="gpu_8x_a100")
        if bought:
            purchase._buy(context, offer)
            assert context.rental.instance_id == "i-2"
        else:
            with pytest.raises(NoCapacity):
                purchase._buy(context, offer)
        assert context.ledger.intents(context.rental.id, open_only=True) == []

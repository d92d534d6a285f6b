"""Orders that were refused, and the machine that was bought all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import NoCapacity
from orchestrator.core.ports import Instance, LaunchRequest, Offer
from orchestrator.ledger.records import INTENT_ADOPTED, INTENT_BOUGHT, Intent
from orchestrator.stages.machine import purchase
from orchestrator.stages.machine.first_contact import boot
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


@pytest.mark.parametrize(
    ("state", "fields", "after_s"),
    [
        (INTENT_ADOPTED, {"intent_id": "intent-1"}, 0.0),
        (INTENT_ADOPTED, {"intent_id": "intent-2"}, 60.0),
        (INTENT_ADOPTED, {"intent_id": None}, 0.0),
        (INTENT_ADOPTED, {"intent_id": None, "launched_at": 1_800_000_030.0}, 30.0),
        (INTENT_BOUGHT, {"intent_id": None}, 60.0),
    ],
)
def test_the_bill_of_a_machine_that_turned_up_begins_with_the_order_that_bought_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, fields: dict[str, object], after_s: float
) -> None:
    account = LyingAccount()
    began = account.now
    with rented(tmp_path, account, monkeypatch, None) as context:
        context.ledger.add_intent(Intent("intent-2", context.rental.id, account.now))
        purchase.hold(context, machine_of(context, "i-2", **fields), state)
        assert context.machine_facts.life.booting_at == began + after_s


@pytest.mark.parametrize(("settle_s", "lag_s"), [(20.0, 20.0), (600.0, boot.LISTS_LAG_S)])
def test_a_list_that_shows_it_booting_may_be_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settle_s: float, lag_s: float
) -> None:
    account = LyingAccount(settle_s=settle_s)
    with rented(tmp_path, account, monkeypatch) as context:
        boot.note_life(context, booting_at=account.now)
        for later_s, booting_s in ((0.0, 0.0), (lag_s, 0.0), (lag_s + 50.0, 50.0), (lag_s + 10.0, 50.0)):
            boot._note(context, "booting", account.now + later_s)
            assert context.machine_facts.life.booting_at == account.now + booting_s

"""Several machines are rented as one: whichever of them cannot be had, and however, all are held or none is left. The
account keeps its own bill, on a clock that the test moves."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from orchestrator.core.errors import (
    GptctlError,
    ProviderError,
    StillBilling,
)
from orchestrator.core.fleet import end_proof
from orchestrator.core.ports import Instance, LaunchRequest
from orchestrator.ledger.records import RENTAL_RELEASED
from orchestrator.stages import acquire as stage
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.release import release
from tests.support.clock.proof import REAL_S
from tests.support.machines.lying_account import PRICE, rented
from tests.support.machines.seller import Seller


@pytest.fixture(autouse=True)
def quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)
    monkeypatch.setattr(stage.sent_data, "before_buying", lambda context: None)
    monkeypatch.setattr(stage, "_use_node", lambda node: node.set_rental_facts(reached=node.now()))


HOWS = (
    "capacity ends there",
    "capacity ends everywhere",
    "quota",
    "refused",
    "not sent",
    "no answer, nothing bought",
    "no answer, and bought",
    "refused, and bought all the same",
    "unhealthy",
)
GOES_ON = {HOWS[0], HOWS[2], HOWS[6], HOWS[7], HOWS[8]}
"""All of its machines are held in the end."""


def settled(context: RunContext, seller: Seller) -> None:
    """Released: no machine is alive, and our bill is not below theirs."""
    release(context)
    rental = context.ledger.rental(context.rental.id)
    assert (seller.alive, rental.state) == ([], RENTAL_RELEASED)
    bill = rental.facts.bill
    assert bill is not None and bill.cost.cost_usd >= seller.bill_usd - 1e-9
    assert bill.cost.low <= seller.bill_usd + 1e-9


@pytest.mark.parametrize(
    ("nodes", "wrong", "how"), [(n, k, how) for (n, k), how in itertools.product(((2, 0), (2, 1), (3, 1)), HOWS)]
)
def test_all_are_held_in_one_place_or_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, wrong: int, how: str
) -> None:
    seller = Seller(how=how, wrong=wrong)
    with rented(tmp_path, seller, monkeypatch, None, nodes) as context:
        try:
            stage.acquire(context)
        except GptctlError:
            assert how not in GOES_ON and seller.alive == []
            assert context.instance_ids == ()
        else:
            assert how in GOES_ON
            held = context.instance_ids
            assert len(held) == nodes and set(held) == set(seller.alive)
            assert len({seller.rows[each].region for each in held}) == 1
            machines = [node.rental for node in context.machines]
            assert [each.address.host for each in machines] == [seller.rows[each].address.host for each in held]  # type: ignore[union-attr]
            assert len({each.facts.host_key for each in machines}) == nodes
            assert context.rental.price_per_hour_usd == pytest.approx(nodes * PRICE)
            assert context.ledger.billing_per_hour_usd() == pytest.approx(nodes * PRICE)
        settled(context, seller)


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("lag_s", [0.0, 10.0, 40.0])
def test_a_machine_that_shows_late_is_held_or_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, lag_s: float
) -> None:
    seller = Seller(how="no answer, and bought", wrong=wrong, lag_s=lag_s)
    with rented(tmp_path, seller, monkeypatch, None, 2) as context:
        if lag_s > seller.settle_s:
            with pytest.raises(ProviderError, match="never seen"):
                stage.acquire(context)
            seller.sleep(lag_s)
        else:
            stage.acquire(context)
            assert set(context.instance_ids) == set(seller.alive)
        settled(context, seller)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_one_that_is_never_reached_is_given_back_with_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    seller, tried = Seller(), []

    def unreachable_once(node: RunContext) -> None:
        if node.node == wrong and not tried:
            tried.append(node.rental.instance_id)
            raise boot.BadMachine("it does not answer SSH")

    monkeypatch.setattr(stage, "_use_node", unreachable_once)
    with rented(tmp_path, seller, monkeypatch, None, 3) as context:
        stage.acquire(context)
        assert context.instance_ids == ("i-3", "i-4", "i-5")
        assert set(seller.alive) == {"i-3", "i-4", "i-5"}
        settled(context, seller)


@pytest.mark.parametrize("after", [1, 2])
def test_a_driver_killed_between_two_orders_buys_what_is_missing_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    seller = Seller()

    class Killed(BaseException):
        pass

    orders = seller.acquire

    def killed(request: LaunchRequest) -> Instance:
        if len(seller.asked) == after:
            monkeypatch.setattr(seller, "acquire", orders)
            orders(request)  # bought, and nobody hears the answer
            raise Killed
        return orders(request)

    monkeypatch.setattr(seller, "acquire", killed)
    with rented(tmp_path, seller, monkeypatch, None, 3) as context:
        with pytest.raises(Killed):
            stage.acquire(context)
        stage.acquire(context)
        assert len(seller.asked) == 3 and set(context.instance_ids) == {"i-0", "i-1", "i-2"}
        settled(context, seller)


def test_release_without_an_answer_names_every_machine_and_the_price_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seller = Seller()
    with rented(tmp_path, seller, monkeypatch, None, 2) as context:
        stage.acquire(context)
        seller.silent = True
        with pytest.raises(StillBilling, match=r"i-0, i-1 on lambda may still be billing at \$31.84/h"):
            release(context)

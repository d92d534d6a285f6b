"""Ending machines that relapse, that nobody knew of, or whose API is silent: on a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.core.errors import LinkLost, NoAnswer, ProviderError, StillBilling
from orchestrator.core.fleet import end_proof
from orchestrator.core.money.billing import observed
from orchestrator.core.ports import Address, Life
from orchestrator.core.states import State
from orchestrator.ledger.records import INTENT_OPEN, RENTAL_OPEN, Intent
from orchestrator.runs import stop
from orchestrator.stages import release as stage
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import purchase
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.machine.give_back import WITHIN_S, end_others, give_back
from orchestrator.stages.release import release
from tests.support.clock.proof import REAL_S
from tests.support.machines.lying_account import LyingAccount, machine_of, rented


@pytest.fixture(autouse=True)
def stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)


@pytest.mark.parametrize("relapses", [1, 2, 3])
@pytest.mark.parametrize("after_s", [0.0, 3.0, REAL_S - 1])
def test_a_machine_that_relapses_is_ended_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relapses: int, after_s: float
) -> None:
    account = LyingAccount()
    back_at = float("inf")

    def ends(instance_id: str) -> None:
        nonlocal back_at
        account.end(instance_id)
        back_at = account.now + after_s if len(account.orders) <= relapses else float("inf")

    def sleep(seconds: float) -> None:
        account.now += seconds
        if account.now >= back_at:
            account.show("i-1", status="active")

    account.on_end = ends
    monkeypatch.setattr(account, "sleep", sleep)
    with rented(tmp_path, account, monkeypatch) as context:
        give_back(context)
    assert account.rows["i-1"].status == "terminated"
    assert len(account.orders) == relapses + 1


@pytest.mark.parametrize("held", ["i-1", None])
def test_a_machine_that_only_the_list_knows_is_ended_and_billed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str | None
) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch, held) as context:
        account.rows["i-2"] = machine_of(context, "i-2")
        account.rows["other"] = machine_of(context, "other", rental_id="8xa100-1129-zzzzzz")
        give_back(context)
        ((extra,)) = context.machine_facts.given_back
        span = observed(extra.life)
    assert {*account.orders} == {"i-2", *filter(None, [held])}
    assert extra.instance_id == "i-2" and span is not None
    assert span.ended[1] - span.active[0] >= 60.0 >= span.ended[0] - span.active[1]


def test_a_rental_that_ordered_nothing_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount(silent=True)
    with rented(tmp_path, account, monkeypatch, None) as context:
        monkeypatch.setattr(context.ledger, "intents", lambda *_, **__: [])
        began = account.now
        give_back(context)
    assert account.now == began


def test_a_refused_order_does_not_hide_that_the_machine_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(instance_id: str) -> None:
        raise ProviderError("status 500", "try again")

    account = LyingAccount(on_end=refused)
    with rented(tmp_path, account, monkeypatch) as context:
        account.end("i-1")  # by its watcher, or itself
        began = account.now
        give_back(context)
        assert context.machine_facts.life.gone_at is not None
    assert account.now - began < 60


@pytest.mark.parametrize("for_s", [1.0, 30.0, WITHIN_S - 120])
def test_a_login_that_expires_at_release_keeps_the_wait_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_s: float
) -> None:
    account = LyingAccount()
    until = account.now + for_s

    def expired() -> None:
        account.sleep(1.0)
        if account.now < until:
            raise ProviderError("ExpiredToken", "log in again")

    monkeypatch.setattr(account, "_answer", expired)
    with rented(tmp_path, account, monkeypatch) as context:
        give_back(context)
        assert context.machine_facts.life.gone_at is not None
    assert account.rows["i-1"].status == "terminated" and account.now >= until


def test_a_silent_api_ends_the_wait_with_7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount(silent=True)
    with rented(tmp_path, account, monkeypatch) as context:
        began = account.now
        with pytest.raises(StillBilling, match="i-1"):
            give_back(context)
    assert account.now - began < WITHIN_S + 120


def test_an_empty_list_alone_ends_no_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount(hidden=True, on_end=lambda _: None)

    def find(*_: str) -> Life:
        raise NoAnswer("status 500", "try again")

    monkeypatch.setattr(account, "find", find)
    with rented(tmp_path, account, monkeypatch) as context:
        with pytest.raises(StillBilling):
            give_back(context)
        assert context.machine_facts.life.gone_at is None


def test_a_boot_does_not_wait_for_ever_for_a_silent_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount(silent=True)
    with rented(tmp_path, account, monkeypatch) as context:
        began = account.now
        with pytest.raises(NoAnswer):
            boot.wait_until_active(context)
    assert boot.SILENT_S < account.now - began < boot.SILENT_S + 120


def test_a_second_machine_is_ended_while_the_first_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch) as context:
        account.rows["i-2"] = machine_of(context, "i-2")
        end_others(context, account.machines())
        assert [each.instance_id for each in context.machine_facts.given_back] == ["i-2"]
    assert account.orders == ["i-2"]


def test_a_second_machine_is_ended_by_its_id_although_no_list_shows_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = LyingAccount(on_end=lambda _: None)  # the first order to end it does nothing
    with rented(tmp_path, account, monkeypatch) as context:
        account.rows["i-2"] = machine_of(context, "i-2")
        end_others(context, account.machines())
        account.hidden, account.on_end = True, account.end
        give_back(context)
        (second,) = context.machine_facts.given_back
    assert account.orders == ["i-2", "i-1", "i-2"]
    assert account.rows["i-2"].status == "terminated"
    assert second.life.gone_at is not None and second.life.gone_at > (second.life.alive_at or 0.0)


@pytest.mark.parametrize(("intent_id", "adopted"), [("intent-2", True), (None, True), ("intent-1", False)])
def test_a_lost_launch_adopts_the_machine_whose_tags_no_list_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intent_id: str | None, adopted: bool
) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch, None) as context:
        context.ledger.add_intent(Intent("intent-2", context.rental.id, account.now, state=INTENT_OPEN))
        account.rows["i-2"] = machine_of(context, "i-2", intent_id=intent_id)
        if adopted:
            found = purchase.find(context)
            assert found is not None and found.instance_id == "i-2" and account.orders == []
        else:
            with pytest.raises(purchase.Unseen):
                purchase.find(context)
            assert account.orders == ["i-2"]


def test_force_ends_the_machine_beside_a_gptctl_that_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch) as context:
        assert stop._beside(context, "pid 17 on here") == 0 and account.orders == []
        context.set_run_facts(abandon=True)
        assert stop._beside(context, "pid 17 on here") == 0 and account.orders == ["i-1"]


def test_force_does_not_call_a_launch_without_an_answer_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch, None) as context:
        context.ledger.add_intent(Intent("intent-2", context.rental.id, account.now, state=INTENT_OPEN))
        context.set_run_facts(abandon=True)
        with pytest.raises(StillBilling, match="pid 17 on here"):
            stop._beside(context, "pid 17 on here")


def test_the_rental_has_the_price_of_the_machine_type_that_is_ordered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(tmp_path, LyingAccount(), monkeypatch, None) as context:
        other = replace(context.plan, machine="8xH100", price_per_hour_usd=31.92)
        context.set_run_facts(alternatives=(other,))
        purchase._switch(context, "8xH100")
        assert (context.rental.machine, context.rental.price_per_hour_usd) == ("8xH100", 31.92)


@pytest.mark.parametrize("keep", [True, False])
def test_a_machine_that_is_gone_is_asked_nothing_for_the_runs_that_it_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch) as context:
        context.ledger.add_run(replace(context.run, id="its-next-arm"))
        context.ledger.update_rental(context.rental.id, address=Address(host="127.0.0.1", port=1, identity="i-1"))
        context.set_rental_facts(reached=context.now())
        boot.note_life(context, gone_at=context.now())
        monkeypatch.setattr(type(context), "run", replace(context.run, keep=keep))
        release(context)
        assert account.orders == []


def test_one_that_cannot_be_ordered_to_end_keeps_no_other_one_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = LyingAccount()

    def ends(instance_id: str) -> None:
        if instance_id == "i-2":
            raise NoAnswer("status 500", "try again")
        account.end(instance_id)

    account.on_end = ends
    with rented(tmp_path, account, monkeypatch) as context:
        account.rows.update({each: machine_of(context, each) for each in ("i-2", "i-3")})
        with pytest.raises(NoAnswer):
            end_others(context, account.machines())
    assert account.orders == ["i-2", "i-3"] and account.rows["i-3"].status == "terminated"


def test_a_node_that_does_not_answer_keeps_no_other_one_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def silent(context: RunContext) -> None:
        raise LinkLost("node 0 does not answer")

    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        context.set_rental_facts(reached=context.now())
        monkeypatch.setattr(
            type(context),
            "machines",
            (context, SimpleNamespace(node=1, rental=context.rental, machine_facts=context.machine_facts)),
        )
        monkeypatch.setattr(stage, "_end_on_machine", silent)
        monkeypatch.setattr(stage.others, "release", lambda context: asked.append("the others' jobs"))
        monkeypatch.setattr(stage.home_box_job, "stop", lambda context: asked.append("the home box's job"))
        monkeypatch.setattr(stage.box_guard, "finish", lambda node: asked.append(f"the guard of node {node.node}"))
        stage._part(context)
    assert asked == ["the others' jobs", "the home box's job", "the guard of node 1"]


def test_a_machine_on_which_a_run_trains_that_no_list_shows_is_not_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = LyingAccount()
    with rented(tmp_path, account, monkeypatch) as context:
        context.ledger.add_run(replace(context.run, id="hidden", state=State.TRAINING))
        context.ledger.update_run("hidden", facts={"forgotten_at": context.now()})
        release(context)
        assert account.orders == [] and context.rental.state == RENTAL_OPEN

"""Ending machines by id from the accounts alone, and which of those that no list shows may live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import NoAnswer, ProviderError
from orchestrator.core.fleet import end_proof
from orchestrator.core.fleet.orphans import UNLISTED, KnownRental
from orchestrator.core.ports import Instance, Life, Provider
from orchestrator.fleet.accounts import Account
from orchestrator.fleet.watcher import GONE_WITHIN_S, look, reap
from tests.support.clock.proof import REAL_S
from tests.support.machines.lying_account import MACHINE, LyingAccount

HOST = HostSpec(name="cloud", provider="lambda", machine=MACHINE)


class Lying(LyingAccount):
    """With what a watcher asks besides."""

    refuses = False
    word: Life | NoAnswer | None = None

    def release(self, instance: Instance) -> bool:
        if self.refuses:
            raise ProviderError("500")
        return super().release(instance)

    def find(self, instance_id: str, region: str = "") -> Life:
        if isinstance(self.word, NoAnswer):
            raise self.word
        return self.word or super().find(instance_id, region)

    def take_warnings(self) -> Sequence[str]:
        return ()

    def tidy(self, rental_id: str) -> Sequence[str]:
        return ()


@pytest.fixture(autouse=True)
def stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)


def account_of(cloud: Lying) -> Account:
    return Account("lambda", cast("Provider", cloud), (HOST,))


def machine(cloud: Lying, launched_s: float = 3600.0) -> Instance:
    at = cloud.now - launched_s
    return Instance("lambda", "i-1", MACHINE, status="active", rental_id="m-1", launched_at=at, price_per_hour_usd=15.9)


@pytest.mark.parametrize(("ends_itself", "gone"), [(True, True), (False, False)])
def test_a_refused_order_does_not_hide_that_the_machine_has_ended(ends_itself: bool, gone: bool) -> None:
    cloud = Lying()
    cloud.rows["i-1"] = machine(cloud)
    seen = look([account_of(cloud)], {}, lambda: cloud.now)
    cloud.refuses = True
    if ends_itself:
        cloud.end("i-1")
    began = cloud.now
    (found,) = reap(seen, seen.rows, by_id=True, clock=lambda: cloud.now, sleep=cloud.sleep)
    assert (found.gone, found.problem) == (gone, "" if gone else "500")
    assert cloud.now - began >= (REAL_S if gone else GONE_WITHIN_S)


def test_a_relapse_is_ordered_to_end_again() -> None:
    cloud = Lying()
    cloud.rows["i-1"] = machine(cloud)
    seen = look([account_of(cloud)], {}, lambda: cloud.now)

    def sleep(seconds: float) -> None:
        cloud.sleep(seconds)
        if len(cloud.orders) == 1:
            cloud.show("i-1", status="active")

    (found,) = reap(seen, seen.rows, by_id=True, clock=lambda: cloud.now, sleep=sleep)
    assert found.gone and cloud.orders == ["i-1", "i-1"] and cloud.rows["i-1"].status == "terminated"


@pytest.mark.parametrize(
    ("word", "launched_s", "shown"),
    [
        ("alive", 3600.0, True),
        ("unknown", 5.0, True),
        ("unknown", 3600.0, False),
        ("gone", 5.0, False),
        ("terminating", 5.0, False),
        (NoAnswer("silence"), 3600.0, True),
    ],
)
def test_of_what_no_list_shows_a_machine_bought_moments_ago_may_live(
    word: Life | NoAnswer, launched_s: float, shown: bool
) -> None:
    cloud = Lying()
    cloud.word = word
    held = KnownRental(cloud.now - launched_s, machines=(machine(cloud, launched_s),))
    rows = look([account_of(cloud)], {"m-1": held}, lambda: cloud.now).rows
    assert [(row.instance_id, row.status) for row in rows] == [("i-1", UNLISTED)] * shown

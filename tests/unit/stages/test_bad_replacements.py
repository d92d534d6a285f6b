"""Machines that are bought in place of a lost node turn out bad: whatever they do, few are bought, no dollar above the
ceiling is spent, none is left, and the node that is bad is the one that goes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.errors import NoCapacity
from orchestrator.core.fleet import end_proof
from orchestrator.core.ports import Instance, LaunchRequest
from orchestrator.core.states import Outcome
from orchestrator.stages.machine.bounds import MOST_MACHINES
from orchestrator.stages.machine.first_contact import boot
from tests.support.clock.proof import REAL_S
from tests.support.machines.lost_node_cluster import Cluster, Machine, driven, settled, training

FATES = ("unhealthy", "silent", "preempted", "booting", "unlisted", "no capacity", "good")
DRAWN = [
    pytest.param(random.Random(seed).choices(FATES, k=12), (None, 16.0)[seed % 2], marks=pytest.mark.nightly)
    for seed in range(12)
]


@pytest.fixture(autouse=True)
def quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)
    monkeypatch.setattr(boot, "LOOK_EVERY_S", 0.2)  # threads of their own sleep by the real clock


def bought_from_now_on(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, fates: Sequence[str]) -> None:
    """The orders after the first three end like that; the last fate holds for all that follow."""
    seller, sell, orders = cluster.seller, cluster.seller.acquire, []

    def acquire(request: LaunchRequest) -> Instance:
        if len(seller.bought_at) < 3:
            return sell(request)
        fate = fates[min(len(orders), len(fates) - 1)]
        orders.append(fate)
        if fate == "no capacity":
            raise NoCapacity("no capacity")
        assert len(seller.bought_at) < 3 + MOST_MACHINES, "it buys on and on"
        sold = sell(request)
        cluster.machines[sold.instance_id] = Machine(dead=fate == "silent")
        if fate in ("unhealthy", "preempted", "booting"):
            row = seller.rows[sold.instance_id]
            seller.rows[sold.instance_id] = replace(
                row, status=fate, address=row.address if fate != "booting" else None
            )
        if fate == "unlisted":
            seller.shown_at[sold.instance_id] = float("inf")
        return sold

    monkeypatch.setattr(seller, "acquire", acquire)


@pytest.mark.parametrize(
    ("fates", "max_cost_usd"),
    [*(([fate], None) for fate in FATES[:-1]), (["booting"], 16.0), (["silent"], 8.0), *DRAWN],
)
def test_few_are_bought_and_the_ceiling_holds_whatever_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fates: Sequence[str], max_cost_usd: float | None
) -> None:
    more = {} if max_cost_usd is None else {"max_cost_usd": max_cost_usd}
    with training(tmp_path, monkeypatch, "replace", **more) as (context, cluster):
        bought_from_now_on(monkeypatch, cluster, fates)
        cluster.lose(1, at_step=60)
        run = driven(context, cluster.seller)
        if run.outcome is not Outcome.FINISHED:
            assert run.outcome in (Outcome.PREEMPTED, Outcome.LIMIT) and run.cause
            assert len(cluster.starts) == 1 and cluster.here == 50
        settled(context, cluster)


def test_it_says_what_the_others_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(tmp_path, monkeypatch, "replace") as (context, cluster):
        bought_from_now_on(monkeypatch, cluster, ["unhealthy"])
        cluster.lose(1, at_step=60)
        run = driven(context, cluster.seller)
        assert run.outcome is Outcome.PREEMPTED
        assert run.cause == "no replacement for cloud-1: 3 machines in a row could not be used"


def test_of_two_new_ones_the_bad_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(tmp_path, monkeypatch, "replace") as (context, cluster):
        bought_from_now_on(monkeypatch, cluster, ["good", "unhealthy", "good"])
        cluster.lose(1, 2, at_step=60)
        run = driven(context, cluster.seller)
        assert run.outcome is Outcome.FINISHED
        assert list(cluster.seller.ended_s)[:3] == ["i-1", "i-2", "i-4"]
        assert cluster.starts[-1] == (3, 50)
        settled(context, cluster)

"""A run over several nodes loses one: whichever it is, whenever, and whether gptctl lives through it or not, it goes on
as its host says, no machine is left, and our bill is not below theirs. On a clock that the test moves."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import GptctlError, StillBilling
from orchestrator.core.fleet import end_proof
from orchestrator.core.planning.plan import Plan
from orchestrator.core.states import Outcome
from orchestrator.ledger.rows import Rows
from orchestrator.stages.checkpoints import store_job
from orchestrator.stages.context import RunContext
from tests.support.clock.proof import REAL_S
from tests.support.machines.lost_node_cluster import EVERY, STEPS, Cluster, Killed, driven, settled, training
from tests.support.machines.lying_account import rented
from tests.support.machines.seller import Seller

SELDOM = (2, 3, 5, 6, 8, 13, 17, 22, 28, 35)
WHEN = {"rendezvous": 0, "middle": 60, "in a save": 75}
NIGHTLY = pytest.mark.nightly


@pytest.fixture(autouse=True)
def quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)


def killed_at(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, at: int) -> None:
    """The driver dies before its transaction number `at` after the first loss."""
    real, seen = Rows.writing, []

    @contextlib.contextmanager
    def writing(rows: Rows) -> Iterator[sqlite3.Connection]:
        if any(each.dead for each in cluster.machines.values()):
            seen.append(1)
            if len(seen) == at:
                raise Killed
        with real(rows) as connection:
            yield connection

    monkeypatch.setattr(Rows, "writing", writing)


@pytest.mark.parametrize("policy", ["continue", "replace"])
@pytest.mark.parametrize(
    ("node", "when"),
    [
        pytest.param(node, when, marks=() if node == 0 or when == "middle" else NIGHTLY)
        for node, when in itertools.product((0, 1, 2), WHEN)
    ],
)
def test_it_goes_on_without_the_node_or_with_another_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, node: int, when: str
) -> None:
    with training(tmp_path, monkeypatch, policy) as (context, cluster):
        cluster.lose(node, at_step=WHEN[when])
        run = driven(context, cluster.seller)
        assert (run.outcome, run.step) == (Outcome.FINISHED, STEPS), run.cause
        left, bought = (2, 3) if policy == "continue" else (3, 4)
        newest = (WHEN[when] - 1) // EVERY * EVERY if WHEN[when] else 0
        assert cluster.starts == [(3, 0), (left, newest)]
        assert len(cluster.seller.asked) == bought
        plan = Plan.from_json(run.plan.to_json() if run.plan else {})
        assert plan.ranks * plan.micro_batch * plan.accumulation == 48
        assert plan.ranks == 8 * left
        known = run.facts.lost_nodes
        assert (known.names, known.times) == ((f"cloud-{node}",), 1)
        assert known.lost_steps <= EVERY
        attempts = context.ledger.attempts(run.id)
        assert [each.from_step for each in attempts] == [0, newest]
        settled(context, cluster)


@pytest.mark.parametrize(
    ("policy", "node"),
    [
        ("continue", 2),
        ("replace", 0),
        *(pytest.param(*each, marks=NIGHTLY) for each in (("continue", 0), ("replace", 2))),
    ],
)
@pytest.mark.parametrize("at", [1, 4, 10, *(pytest.param(at, marks=NIGHTLY) for at in SELDOM)])
def test_a_driver_that_dies_anywhere_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, node: int, at: int
) -> None:
    with training(tmp_path, monkeypatch, policy) as (context, cluster):
        cluster.lose(node, at_step=60)
        killed_at(monkeypatch, cluster, at)
        with contextlib.suppress(Killed):
            driven(context, cluster.seller)
        cluster.seller.sleep(30.0)
        run = driven(context, cluster.seller)
        assert (run.outcome, run.step) == (Outcome.FINISHED, STEPS), run.cause
        assert cluster.starts[0] == (3, 0)
        assert cluster.starts[-1] == ((2, 50) if policy == "continue" else (3, 50))
        assert run.facts.lost_nodes.times == 1
        settled(context, cluster)


def test_a_second_loss_is_beyond_the_restarts_and_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(tmp_path, monkeypatch, "continue") as (context, cluster):
        cluster.lose(1, at_step=60)
        cluster.lose(1, at_step=90)
        run = driven(context, cluster.seller)
        assert run.outcome is Outcome.FAILED and "is lost" in run.cause
        said = [event.text for event in context.ledger.events(run.id)]
        assert any("it lost nodes 2 times, and train.restarts is 1" in text for text in said)
        settled(context, cluster)


def test_without_a_replacement_the_others_wait_so_long_and_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training(tmp_path, monkeypatch, "replace") as (context, cluster):
        cluster.lose(1, at_step=60)
        cluster.seller.how, cluster.seller.wrong = "capacity ends everywhere", 3
        run = driven(context, cluster.seller)
        assert run.outcome is Outcome.PREEMPTED
        assert run.cause.startswith("no replacement for cloud-1 in 15 min: ")
        settled(context, cluster)


def test_the_policy_end_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(tmp_path, monkeypatch, "end") as (context, cluster):
        cluster.lose(1, at_step=60)
        run = driven(context, cluster.seller)
        assert run.outcome is Outcome.FAILED and len(cluster.starts) == 1
        settled(context, cluster)


def test_a_lost_machine_whose_end_is_not_proven_counts_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training(tmp_path, monkeypatch, "continue") as (context, cluster):
        seller = cluster.seller
        cluster.lose(1, at_step=60)
        seller.on_end = lambda each: None if each == "i-1" and seller.orders.count("i-1") < 3 else seller.end(each)
        run = driven(context, seller)
        assert run.outcome is Outcome.FINISHED
        settled(context, cluster)


def test_a_batch_that_does_not_divide_over_one_node_less_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rented(tmp_path, Seller(), monkeypatch, None, 3, global_batch=24, on_node_lost="continue") as context:
        plan = context.plan
        assert not plan.fits
        assert plan.why.startswith(
            'on_node_lost = "continue": with one node less, a global batch of 24 does not divide'
        )


def test_of_two_nodes_one_goes_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(tmp_path, monkeypatch, "continue", 2) as (context, cluster):
        cluster.lose(0, at_step=60)
        run = driven(context, cluster.seller)
        assert (run.outcome, run.machine) == (Outcome.FINISHED, "8xA100-40GB")
        assert cluster.starts == [(2, 0), (1, 50)]
        settled(context, cluster)


def test_a_machine_taken_away_with_all_of_its_nodes_is_no_lost_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training(tmp_path, monkeypatch, "continue", 2) as (context, cluster):
        cluster.lose(0, at_step=60)
        real = cluster.mirror

        def all_go(each: RunContext) -> object:
            try:
                return real(each)
            finally:
                for name, machine in cluster.machines.items():
                    machine.dead = True
                    cluster.seller.end(name)

        monkeypatch.setattr("orchestrator.stages.follow.mirror_until_end", all_go)
        with contextlib.suppress(GptctlError):
            driven(context, cluster.seller)
        assert context.run.outcome is Outcome.PREEMPTED
        settled(context, cluster)


@pytest.mark.parametrize("policy", ["continue", "replace"])
def test_another_head_writes_to_the_store_only_once_the_one_before_is_gone_for_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    stores: list[tuple[str, int]] = []

    def stored(context: RunContext) -> None:
        stores.append((str(context.rental.instance_id), len(cluster.starts)))

    monkeypatch.setattr(store_job, "require", stored)
    monkeypatch.setattr(store_job, "start", stored)
    with training(tmp_path, monkeypatch, policy, checkpoint_store="s3://bucket/models") as (context, cluster):
        seller = cluster.seller
        cluster.lose(0, at_step=60)
        seller.on_end = lambda each: None if each == "i-0" else seller.end(each)
        with pytest.raises(StillBilling, match=r"i-0 .*it may still write to the store"):
            driven(context, seller)
        assert cluster.starts == [(3, 0)] and stores == [("i-0", 0)]
        seller.on_end = None
        run = driven(context, seller)
        assert (run.outcome, run.step) == (Outcome.FINISHED, STEPS), run.cause
        assert cluster.starts[1:] == [(2 if policy == "continue" else 3, 50)]
        # The new head: asked before its training starts, and again once it runs, as its offload may have finished.
        assert stores[1:] == [("i-1", 1), ("i-1", 2)]
        settled(context, cluster)

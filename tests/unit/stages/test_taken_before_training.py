"""A machine of several is taken away before they train: whichever it is, in whichever stage, under every policy, and
whether gptctl saw it or was away, the run ends with that cause, or goes on where it trained before. None bills on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import pipeline
from orchestrator.core.fleet import end_proof
from orchestrator.core.states import Outcome
from orchestrator.ledger.records import RunRecord
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.first_contact import boot
from tests.support.clock.proof import REAL_S
from tests.support.machines.lost_node_cluster import STEPS, Cluster, Killed, driven, settled, training

STAGES = ("provision", "sync", "launch")
NIGHTLY = pytest.mark.nightly


@pytest.fixture(autouse=True)
def quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)
    monkeypatch.setattr(boot, "LOOK_EVERY_S", 0.2)  # threads of their own sleep by the real clock


def before(monkeypatch: pytest.MonkeyPatch, name: str, nth: int, do: Callable[[RunContext], None]) -> None:
    """Stage `name` begins so, in its walk number `nth`."""
    walked: list[str] = []

    def changed(stage: pipeline.Stage) -> pipeline.Stage:
        def run(context: RunContext) -> None:
            walked.append(name)
            if len(walked) == nth:
                do(context)
            for each in context.nodes:
                each.agent.ensure()
            stage.run(context)

        return stage._replace(run=run) if stage.name == name else stage

    monkeypatch.setattr(pipeline, "STAGES", tuple(map(changed, pipeline.STAGES)))


def taken(cluster: Cluster, node: RunContext) -> None:
    cluster.machine(node).dead = True
    cluster.seller.end(str(node.rental.instance_id))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("node", [0, 1])
@pytest.mark.parametrize("policy", ["end", "continue", "replace"])
def test_a_run_that_never_trained_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, node: int, stage: str
) -> None:
    with training(tmp_path, monkeypatch, policy) as (context, cluster):
        before(monkeypatch, stage, 1, lambda each: taken(cluster, each.nodes[node]))
        told(driven(context, cluster.seller), node)
        assert cluster.starts == [] and len(cluster.seller.asked) == 3
        settled(context, cluster)
        assert context.ledger.billing_per_hour_usd() == 0


def told(run: RunRecord, node: int) -> None:
    assert (run.outcome, run.cause) == (Outcome.PREEMPTED, f"lambda took i-{node} (node cloud-{node}) away")


@pytest.mark.parametrize("node", [0, 2])
def test_it_was_taken_while_gptctl_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: int) -> None:
    def killed(each: RunContext) -> None:
        taken(cluster, each.nodes[node])
        raise Killed

    with training(tmp_path, monkeypatch, "end") as (context, cluster):
        before(monkeypatch, "sync", 1, killed)
        with contextlib.suppress(Killed):
            driven(context, cluster.seller)
        told(driven(context, cluster.seller), node)
        settled(context, cluster)


@pytest.mark.parametrize("stage", ["provision", *(pytest.param(stage, marks=NIGHTLY) for stage in STAGES[1:])])
@pytest.mark.parametrize("node", [0, 1, 2])
@pytest.mark.parametrize("policy", ["continue", "replace"])
def test_a_run_that_gets_ready_once_more_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, node: int, stage: str
) -> None:
    with training(tmp_path, monkeypatch, policy, 4 if policy == "continue" else 3) as (context, cluster):
        cluster.lose(1, at_step=60)
        before(monkeypatch, stage, 2, lambda each: taken(cluster, each.nodes[node]))
        run = driven(context, cluster.seller)
        assert (run.outcome, run.step) == (Outcome.FINISHED, STEPS), run.cause
        assert cluster.starts[1:] == [(2 if policy == "continue" else 3, 50)]
        assert (run.facts.lost_nodes.times, run.facts.lost_nodes.unfit) == (1, 1)
        settled(context, cluster)

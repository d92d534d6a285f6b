"""`gptctl stop` in another terminal, while gptctl waits: whatever it waits for, it hears of it within seconds, orders
no machine more, and goes on with the ending. On a clock that the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator import pipeline
from orchestrator.agent.contract.names import JobName
from orchestrator.core.errors import GptctlError, LinkLost, MachineUnfit, NoAnswer
from orchestrator.core.fleet import end_proof
from orchestrator.core.ports import Instance, LaunchRequest, Offer
from orchestrator.core.states import Outcome, State
from orchestrator.remote.agent_client.client import JobState
from orchestrator.remote.transfer_progress import Transfer
from orchestrator.stages import acquire as stage
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import jobs
from orchestrator.stages.machine.bounds import Stopped
from orchestrator.stages.machine.first_contact import boot
from tests.support.clock.proof import REAL_S
from tests.support.machines.lost_node_cluster import Cluster, Machine, driven, settled, training
from tests.support.machines.lying_account import of_this_thread, rented
from tests.support.machines.seller import REGIONS, Seller

HEARD_WITHIN_S = 40.0
"""One answer of an API that is silent, and the way to the next pause."""


@pytest.fixture(autouse=True)
def quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_proof, "STANDS_S", REAL_S)
    monkeypatch.setattr(boot, "LOOK_EVERY_S", 0.2)  # threads of their own sleep by the real clock


def stop(context: RunContext) -> None:
    """As `gptctl stop` does before the training."""
    context.ledger.set_state(context.run_id, State.ENDING, outcome=Outcome.STOPPED, cause="stopped by the user")


def stopped_after(
    monkeypatch: pytest.MonkeyPatch, context: RunContext, seller: Seller, seconds: float
) -> Callable[[], tuple[float, int]]:
    """Stops the run then. Returns what tells when that was, and how many machines had been ordered."""
    sleep, at, heard = seller.sleep, seller.now + seconds, []

    def slept(moved_s: float) -> None:
        sleep(moved_s)
        if seller.now >= at and not heard:
            heard.append((seller.now, len(seller.asked)))
            stop(context)

    monkeypatch.setattr(seller, "sleep", slept)
    monkeypatch.setattr(time, "sleep", of_this_thread(slept))
    return lambda: heard[0]


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("why", ["no capacity", "no answer"])
def test_waiting_for_capacity_ends_and_nothing_is_bought_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, nodes: int
) -> None:
    def silent(deadline_s: float = 30.0) -> Sequence[Offer]:
        raise NoAnswer("no answer")

    seller = Seller()
    monkeypatch.setattr(stage, "_use_node", lambda node: pytest.fail("it is used"))
    monkeypatch.setattr(stage.sent_data, "before_buying", lambda context: None)
    with rented(tmp_path, seller, monkeypatch, None, nodes) as context:
        context.ledger.update_run(context.run_id, facts={"wait": True})
        if why == "no capacity":
            seller.sold_out |= {*REGIONS}
        else:
            monkeypatch.setattr(seller, "offers", silent)
        stopped = stopped_after(monkeypatch, context, seller, 120.0)
        stage.acquire(context)
        assert seller.now - stopped()[0] <= HEARD_WITHIN_S
        assert context.instance_ids == () and not seller.bought_at


def test_a_stop_between_two_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with training(tmp_path, monkeypatch, "end") as (context, cluster):
        seller, orders = cluster.seller, cluster.seller.acquire

        def acquire(request: LaunchRequest) -> Instance:
            stop(context)
            return orders(request)

        monkeypatch.setattr(seller, "acquire", acquire)
        run = driven(context, seller)
        assert run.outcome is Outcome.STOPPED and len(seller.asked) == 1
        settled(context, cluster)


def _boots_for_ever(context: RunContext, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    sell = cluster.seller._sell
    monkeypatch.setattr(cluster.seller, "_sell", lambda request, status: sell(request, "booting"))


def _never_answers(context: RunContext, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.machines |= {f"i-{number}": Machine(dead=True) for number in range(3)}
    cluster.seller.settle_s = 3600.0


def _is_ending_for_ever(context: RunContext, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def provision(each: RunContext) -> None:
        cluster.seller.show("i-1", status="terminating")
        raise LinkLost("cut")

    _in_place_of(monkeypatch, "provision", provision)


def _is_cut_for_ever(context: RunContext, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def provision(each: RunContext) -> None:
        raise LinkLost("cut")

    _in_place_of(monkeypatch, "provision", provision)


def _has_no_replacement(context: RunContext, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.lose(1, at_step=60)
    cluster.seller.how, cluster.seller.wrong = "capacity ends everywhere", 3


def _in_place_of(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[[RunContext], None]) -> None:
    stages = (each._replace(run=run) if each.name == name else each for each in pipeline.STAGES)
    monkeypatch.setattr(pipeline, "STAGES", tuple(stages))


@pytest.mark.parametrize(
    "waits", [_boots_for_ever, _never_answers, _is_ending_for_ever, _is_cut_for_ever, _has_no_replacement]
)
def test_the_ending_begins_within_seconds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: Callable[[RunContext, Cluster, pytest.MonkeyPatch], None],
) -> None:
    with training(tmp_path, monkeypatch, "replace") as (context, cluster):
        waits(context, cluster, monkeypatch)
        seller = cluster.seller
        stopped = stopped_after(monkeypatch, context, seller, 150.0)
        run = driven(context, seller)
        at, ordered = stopped()
        assert run.outcome is Outcome.STOPPED and len(seller.asked) == ordered
        ended = [each.started_at for each in context.ledger.intervals(run.id) if each.stage == "fetch"]
        assert ended[0] - at <= HEARD_WITHIN_S
        assert (seller.alive, run.state) == ([], State.ENDED)


@pytest.mark.parametrize("error", [NoAnswer("no answer"), MachineUnfit("no interpreter computes")], ids=str)
def test_whatever_fails_in_a_stage_of_a_run_that_was_stopped_the_ending_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: GptctlError
) -> None:
    def provision(each: RunContext) -> None:
        stop(each)
        raise error

    with training(tmp_path, monkeypatch, "end") as (context, cluster):
        _in_place_of(monkeypatch, "provision", provision)
        run = driven(context, cluster.seller)
        assert (run.outcome, run.cause) == (Outcome.STOPPED, "stopped by the user")
        settled(context, cluster)


class Busy:
    """An agent whose job says nothing for long, on a machine that answers."""

    def start(self, job: str, run: str, digest: str, spec: object) -> JobState:
        return JobState(job, run, "running", digest, None)

    def wait(self, run: str, job: str, show: object, digest: str, on_heartbeat: Callable[[], None]) -> dict[str, str]:
        on_heartbeat()
        return {"outcome": "finished"}


@pytest.mark.parametrize("name", ["provision", "sync", "launch", "release", None])
def test_a_job_and_a_transfer_are_left_by_the_stages_before_the_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    with rented(tmp_path, Seller(), monkeypatch) as context:
        context.stage = name
        works: list[Callable[[], object]] = [
            lambda: jobs.run_job(context, Busy(), JobName.INSTALL, "d", {}),  # type: ignore[arg-type]
            lambda: jobs.progress(context, "data")(Transfer(1, 2, 1.0, 1.0, "data")),
        ]
        for work in works:
            work()
        stop(context)
        for work in works:
            if name in ("release", None):  # `gptctl fetch` of a run that has ended is in no stage
                work()
            else:
                with pytest.raises(Stopped):
                    work()

"""Agents of the machines of an account that trains in steps on the account's clock, and nodes that fall silent.

with training(tmp_path, monkeypatch, "replace") as (context, cluster):
    cluster.lose(1, at_step=60)
    run = driven(context, cluster.seller)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import pipeline
from orchestrator.core.errors import Unreachable
from orchestrator.core.facts.run_facts import DataOnMachine, Prepared, ResumeFrom, Synced
from orchestrator.core.states import State
from orchestrator.ledger.records import RENTAL_RELEASED, RunRecord
from orchestrator.remote.agent_client.client import JobState
from orchestrator.stages import acquire, fetch, follow
from orchestrator.stages.checkpoints import continue_from
from orchestrator.stages.context import RunContext
from orchestrator.stages.outcome import regroup
from orchestrator.wiring import open_context
from tests.support.machines.lying_account import rented
from tests.support.machines.seller import Seller

EVERY = 25
"""Steps between two checkpoints; one step takes a second."""
NOTICED_S = 18.0
STEPS = 200


@dataclass
class Machine:
    """What one agent knows of the run."""

    attempt: int = 0
    exit: dict[str, Any] | None = None
    checkpoints: list[int] = field(default_factory=list)
    dead: bool = False


@dataclass
class Cluster:
    """All machines, by their ids. A loss: the nodes' numbers among those that train, and the step at which they go."""

    seller: Seller
    losses: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    machines: dict[str, Machine] = field(default_factory=dict)
    starts: list[tuple[int, int]] = field(default_factory=list)
    """Of each start of the training: how many nodes, and the step that it began with."""
    began_at: float = 0.0
    here: int = 0
    """The newest checkpoint that is on this side."""
    shown: int = 0

    def machine(self, context: RunContext) -> Machine:
        return self.machines.setdefault(str(context.rental.instance_id), Machine())

    def lose(self, *nodes: int, at_step: int) -> None:
        self.losses.append((nodes, at_step))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RunContext, "agent", property(lambda context: Agent(self, context)))
        stages = {"provision": _provision, "sync": self._sync, "report": lambda context: None}
        monkeypatch.setattr(
            pipeline, "STAGES",
            tuple(each._replace(run=stages.get(each.name, each.run)) for each in pipeline.STAGES),
        )  # fmt: skip
        monkeypatch.setattr(follow, "mirror_until_end", self.mirror)
        monkeypatch.setattr(fetch, "_fetch", lambda context: None)
        monkeypatch.setattr("orchestrator.stages.outcome.run_report.write", lambda context: None)
        monkeypatch.setattr(acquire.sent_data, "before_buying", lambda context: None)
        monkeypatch.setattr("orchestrator.stages.launch._amend_plan", lambda context: None)
        monkeypatch.setattr(regroup.mirror, "mirror_now", lambda context: None)
        monkeypatch.setattr(regroup, "pull_newest", self._pull)
        monkeypatch.setattr(continue_from, "newest", self._newest)

    def _pull(self, context: RunContext) -> None:
        context.agent.status(context.run_id)
        self.here = max([self.here, *self.machine(context).checkpoints])

    def _newest(self, context: RunContext) -> ResumeFrom | None:
        return ResumeFrom("/here", self.here) if self.here else None

    def _sync(self, context: RunContext) -> None:
        for node in context.nodes:
            node.set_run_facts(synced=Synced("/source", DataOnMachine(("/data",))))
        if context.facts.lost_nodes.head_moved and self.here:
            self.machine(context).checkpoints = [self.here]

    def started(self, context: RunContext) -> None:
        """The head started: all that run the same attempt train."""
        self.began_at = self.seller.now
        self.starts.append((context.machine.nodes, self._step_of(context)))

    def _step_of(self, context: RunContext) -> int:
        return max(self.machine(context).checkpoints, default=0)

    def mirror(self, context: RunContext) -> dict[str, Any]:
        """Follows to the next event: a loss, or the end."""
        head, begun = self.machine(context), self._step_of(context)
        if head.dead:
            self.seller.sleep(10.0)
            raise Unreachable("the head does not answer")
        if head.exit is not None:
            return head.exit
        lost = self.losses.pop(0) if self.losses else None
        at = STEPS if lost is None else max(begun, lost[1])
        self.seller.now = max(self.seller.now, self.began_at + at - begun)
        head.checkpoints += [step for step in range(begun + 1, at) if step % EVERY == 0]
        self.here = max([self.here, *head.checkpoints])
        context.ledger.update_run(context.run_id, step=at, seen_at=self.seller.now)
        alive = [self.machine(node) for node in context.nodes]
        if lost is None:
            for each in alive:
                each.exit = _exit("finished", "")
            return alive[0].exit or {}
        for node in lost[0]:
            alive[node].dead = True
        self.seller.sleep(NOTICED_S)
        for each in alive:
            if not each.dead:
                each.exit = {**_exit("failed", f"node {lost[0][0]} is lost: no word for 15 s"), "lost": [*lost[0]]}
        if head.dead:
            raise Unreachable("the head does not answer")
        return head.exit or {}


def _exit(outcome: str, reason: str) -> dict[str, Any]:
    return {
        "code": 0, "signal": None, "outcome": outcome, "reason": reason, "started_at": 0.0, "ended_at": 0.0,
        "duration_s": 1.0, "error": None, "trainer": None, "result": None,
    }  # fmt: skip


def _provision(context: RunContext) -> None:
    context.advance(State.PREPARING)
    for node in context.nodes if context.run.state != State.TRAINING else (context,):
        node.agent.ensure()
        node.set_run_facts(prepared=Prepared("/python", cpus=8))


class Agent:
    """The agent on one machine, as far as the stages here ask it."""

    root = "/root/.gptctl"

    def __init__(self, cluster: Cluster, context: RunContext) -> None:
        self.cluster, self.context = cluster, context
        self.machine = cluster.machine(context)

    def ensure(self) -> None:
        self.cluster.seller.sleep(0.5)
        if self.machine.dead:
            self.cluster.seller.sleep(10.0)
            raise Unreachable(f"{self.context.rental.instance_id} does not answer")

    def start(self, job: str, run: str, digest: str, spec: Mapping[str, Any]) -> JobState:
        self.ensure()
        state = "running" if self.machine.attempt else "started"
        if spec["attempt"] > self.machine.attempt:
            assert not self.machine.attempt or self.machine.exit, "an attempt before still runs"
            self.machine.attempt, self.machine.exit, state = spec["attempt"], None, "started"
            if not self.context.node:
                self.cluster.started(self.context)
        elif self.machine.exit:
            state = "ended"
        return JobState(job, run, state, digest, None)

    def stop(self, run: str, grace_s: float = 0.0) -> dict[str, Any]:
        self.ensure()
        if self.machine.attempt and self.machine.exit is None:
            self.machine.exit = _exit("stopped", "asked to stop")
        return {"state": "ended", "exit": self.machine.exit}

    def status(self, run: str | None = None) -> dict[str, Any]:
        self.ensure()
        train = {"attempt": self.machine.attempt, "exit": self.machine.exit}
        jobs = {"train": train} if self.machine.attempt else {}
        return {"runs": {run: {"jobs": jobs, "checkpoints": self.machine.checkpoints, "guard": None}}}

    def release(self, run: str) -> None:
        self.ensure()


def driven(context: RunContext, seller: Seller) -> RunRecord:
    """As `gptctl resume` does: walks until the run has ended, with a context of its own each time."""
    while True:
        fresh = replace(
            open_context(context.home, context.ledger, context.run_id, context.listener), now=lambda: seller.now
        )
        fresh.provider = context.provider
        pipeline.walk(fresh)
        if fresh.run.state != State.PLANNED:
            return fresh.run


class Killed(BaseException):
    """The driver is killed."""


@contextlib.contextmanager
def training(
    home: Path, monkeypatch: pytest.MonkeyPatch, policy: str, nodes: int = 3, **more: object
) -> Iterator[tuple[RunContext, Cluster]]:
    seller = Seller()
    cluster = Cluster(seller)
    with rented(home, seller, monkeypatch, None, nodes, global_batch=48, on_node_lost=policy, **more) as context:
        monkeypatch.setattr("orchestrator.wiring.provider_of", lambda *_: seller)
        cluster.install(monkeypatch)
        yield context, cluster


def settled(context: RunContext, cluster: Cluster) -> None:
    """No machine is alive, and our bill is not below theirs, and not far above."""
    seller, rental = cluster.seller, context.rental
    assert (seller.alive, rental.state) == ([], RENTAL_RELEASED)
    bill = rental.facts.bill
    assert bill is not None and bill.cost.cost_usd >= seller.bill_usd - 1e-9
    assert bill.cost.low <= seller.bill_usd + 1e-9
    assert bill.cost.cost_usd <= (context.plan.ceiling_usd or 0.0)

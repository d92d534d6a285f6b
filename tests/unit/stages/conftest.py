"""For units of the stages: an engine of jobs whose answers a test loses, and a run's context over it and a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.agent.contract.names import Code
from orchestrator.core.engine import JobOrder, JobView, Phase, Span
from orchestrator.core.errors import AgentError, MachineUnfit, NoAnswer
from orchestrator.core.facts.run_facts import QueueFacts, RunFacts
from orchestrator.core.ports import Result
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.remote.agent_client.client import JobState
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import engine_job, engine_watch
from orchestrator.stages.outcome import engine_bill

NONE = cast("JobState", SimpleNamespace(exit=None))
SPEC: Any = {"deadline_s": 3600.0}


class Killed(BaseException):
    """gptctl, by SIGKILL."""


class Queue:
    """An engine with books, whose answers a test loses."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[str, JobView]] = {}
        self.cancelled: list[str] = []
        self.free: list[str] = []
        self.spans: Sequence[Span] | None = ()
        self.asked: list[str] = []
        """Of the books, the last time."""
        self.arms: dict[str, tuple[str, ...]] = {}
        self.silent = False
        self.die_after_submit = False
        self.order: JobOrder | None = None

    def script(self, order: JobOrder) -> str:
        self.order = order
        return "#!/bin/bash\n"

    def submit(self, script: str) -> str:
        assert self.order is not None
        number = str(17 + len(self.jobs))
        self.jobs[number] = (self.order.name, JobView(number, Phase.WAITING, "PENDING"))
        self.arms[number] = self.order.arms
        if self.die_after_submit:
            self.die_after_submit = False
            raise Killed
        return number

    def say(self, job: str, phase: Phase, state: str) -> None:
        self.jobs[job] = (self.jobs[job][0], JobView(job, phase, state))

    def look(self, job: str) -> JobView | None:
        if self.silent:
            raise NoAnswer("c: Slurm does not answer")
        known = self.jobs.get(job.partition("_")[0])
        return known[1] if known else None

    def words(self, found: JobView) -> str:
        return found.reason

    def find(self, name: str) -> Sequence[str]:
        return [number for number, (called, _) in self.jobs.items() if called == name]

    def let_go(self, job: str) -> None:
        self.free.append(job)

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)

    def usage(self, jobs: Sequence[str]) -> Sequence[Span] | None:
        self.asked = list(jobs)
        return self.spans


class Cluster:
    """What a run's stages need of their context, over a real ledger: `of("r-a")`."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.engine = ledger, Queue()
        self.files: dict[str, str] = {}
        self.ended: set[str] = set()
        self.gone = False
        self.told: list[str] = []
        self.now = 100.0
        self.full = False
        self.most_s: float | None = None

    def of(self, run_id: str) -> RunContext:
        cluster = self

        class Context(SimpleNamespace):
            run = property(lambda _: cluster.ledger.run(run_id))
            facts = property(lambda _: cluster.ledger.run(run_id).facts)

            def set_run_facts(self, **facts: Any) -> None:
                cluster.ledger.update_run(run_id, facts=cast("Any", facts))

        machine = SimpleNamespace(ranks=1, nodes=1, gpus=1, cuda=True)
        made = Context(
            run_id=run_id, ledger=self.ledger, engine=self.engine, engine_of=lambda _: self.engine, machine=machine,
            agent=SimpleNamespace(root="/shared", start=self.start, status=self.status, stop=self.stop),
            shell=SimpleNamespace(put=self.put, run=self.run), host=SimpleNamespace(provider="slurm", name="c"),
            prepared=SimpleNamespace(python="/py"), synced=SimpleNamespace(source="/src"), stage="follow",
            rental=self.ledger.rental("r-1"), interval=None, say=self.told.append, now=lambda: self.now,
            emit=lambda kind, text="", **_: self.told.append(text), plan=self,
        )  # fmt: skip
        return cast("RunContext", made)

    def start(self, job: str, run: str, digest: str, spec: Mapping[str, object]) -> JobState:
        return NONE

    def status(self, run: str) -> dict[str, Any]:
        if self.gone:
            raise AgentError("no run", code=Code.NO_SUCH_RUN)
        return {"runs": {run: {"jobs": {"train": {"exit": {} if run in self.ended else None}}}}}

    def stop(self, run: str) -> None:
        self.ended.add(run)

    def put(self, local: Path, path: str, mode: int = 0) -> None:
        if self.full:
            raise MachineUnfit("c: cannot write exit.json: its disk is full")
        self.files[path] = local.read_text()

    def run(self, argv: Sequence[str]) -> Result:
        return Result(tuple(argv), 0, self.files.get(argv[-1], "").encode(), b"")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(engine_job, "LEAVES_EVERY_S", 0.0)
    monkeypatch.setattr(engine_job, "LEAVES_S", 0.0)
    monkeypatch.setattr(engine_bill, "COMPLETE_WITHIN_S", 0.0)
    monkeypatch.setattr(engine_bill, "LOOKS_EVERY_S", 0.0)
    monkeypatch.setattr(engine_watch, "train_deadline_s", lambda plan: plan.most_s)
    with Ledger.open(tmp_path / "home", lambda: 5.0) as ledger:
        ledger.add_rental(Rental("r-1", "slurm", "c", "1xH100", 1.0, price_per_hour_usd=3.6))
        for name in ("r-a", "r-b", "r-c"):
            facts = RunFacts(queue=QueueFacts(group="sweep-small"))
            ledger.add_run(RunRecord(name, "tiny", "c", "1xH100", 2.0, rental_id="r-1", facts=facts))
        ledger.add_run(RunRecord("r-1", "tiny", "c", "1xH100", 2.0, rental_id="r-1", facts=RunFacts()))
        yield Cluster(ledger)

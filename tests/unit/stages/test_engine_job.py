"""A run as a job of an engine: killed anywhere, with answers lost, it has one job; that is found, stopped, billed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.agent.contract.names import Code
from orchestrator.core.engine import JobOrder, JobView, Phase, Span
from orchestrator.core.errors import AgentError, MachineUnfit, NoAnswer
from orchestrator.core.facts.run_facts import EngineFacts, QueueFacts, RunFacts
from orchestrator.core.ports import Result
from orchestrator.core.states import Outcome, State
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
    monkeypatch.setattr(engine_watch, "train_deadline_s", lambda plan: plan.most_s)
    with Ledger.open(tmp_path / "home", lambda: 5.0) as ledger:
        ledger.add_rental(Rental("r-1", "slurm", "c", "1xH100", 1.0, price_per_hour_usd=3.6))
        for name in ("r-a", "r-b", "r-c"):
            facts = RunFacts(queue=QueueFacts(group="sweep-small"))
            ledger.add_run(RunRecord(name, "tiny", "c", "1xH100", 2.0, rental_id="r-1", facts=facts))
        ledger.add_run(RunRecord("r-1", "tiny", "c", "1xH100", 2.0, rental_id="r-1", facts=RunFacts()))
        yield Cluster(ledger)


def test_a_lost_answer_of_the_engine_leaves_one_job(cluster: Cluster) -> None:
    cluster.engine.die_after_submit = True
    with pytest.raises(Killed):
        engine_job.submit(cluster.of("r-1"), "d", SPEC)
    engine_job.submit(cluster.of("r-1"), "d", SPEC)
    assert list(cluster.engine.jobs) == ["17"] and cluster.of("r-1").facts.engine.jobs == ("17",)


@pytest.mark.parametrize("begin", [engine_job.attach, engine_job.stop])
def test_a_job_that_nobody_noted_is_found_by_who_resumes_or_stops(cluster: Cluster, begin: Any) -> None:
    """It would train on, and could be neither stopped nor billed."""
    cluster.engine.die_after_submit = True
    with pytest.raises(Killed):
        engine_job.submit(cluster.of("r-1"), "d", SPEC)
    begin(cluster.of("r-1"))
    assert cluster.of("r-1").facts.engine.jobs == ("17",)
    assert cluster.engine.cancelled == (["17"] if begin is engine_job.stop else [])


def test_an_element_stays_with_its_run_wherever_gptctl_is_killed(cluster: Cluster) -> None:
    """Run b would let go, watch and cancel the element that trains run a."""
    cluster.engine.die_after_submit = True
    with pytest.raises(Killed):
        engine_job.submit(cluster.of("r-a"), "d", SPEC)
    cluster.ledger.set_state("r-b", State.ENDING, outcome=Outcome.STOPPED)
    cluster.ledger.set_state("r-b", State.ENDED)
    for run in ("r-c", "r-a"):
        engine_job.submit(cluster.of(run), "d", SPEC)
    assert cluster.engine.arms == {"17": ("r-a", "r-b", "r-c")}
    assert [cluster.of(run).facts.engine.jobs for run in ("r-a", "r-c")] == [("17_0",), ("17_2",)]
    assert cluster.engine.free == ["17_2", "17_0"]


def test_runs_that_join_a_sweep_later_get_a_job_of_their_own(cluster: Cluster) -> None:
    engine_job.submit(cluster.of("r-a"), "d", SPEC)
    for name in ("r-d", "r-e"):
        facts = RunFacts(queue=QueueFacts(group="sweep-small"))
        cluster.ledger.add_run(RunRecord(name, "tiny", "c", "1xH100", 3.0, rental_id="r-1", facts=facts))
    engine_job.submit(cluster.of("r-e"), "d", SPEC)
    assert cluster.of("r-e").facts.engine.jobs == ("18_1",) and cluster.engine.arms["18"] == ("r-d", "r-e")


def watched(cluster: Cluster, run: str = "r-1") -> Any:
    """What a follower concludes after two looks."""
    watch = engine_watch.Watch(cluster.of(run))
    for _ in range(2):
        cluster.now += 60
        found = watch.look()
    return found


def trains(cluster: Cluster) -> None:
    engine_job.submit(cluster.of("r-1"), "d", SPEC)
    cluster.ledger.set_state("r-1", State.TRAINING)


@pytest.mark.parametrize("state", sorted(engine_watch.DROPPED))
def test_a_dropped_job_is_submitted_again_once(cluster: Cluster, state: str) -> None:
    trains(cluster)
    cluster.engine.say("17", Phase.ENDED, state)
    cluster.engine.die_after_submit = True
    with pytest.raises(Killed):
        watched(cluster)
    assert watched(cluster) is None
    assert list(cluster.engine.jobs) == ["17", "18"] and cluster.of("r-1").facts.engine.jobs == ("17", "18")


def test_a_run_is_submitted_so_often_and_no_more(cluster: Cluster) -> None:
    trains(cluster)
    records = []
    for number in range(17, 17 + engine_watch.MOST_JOBS):
        cluster.engine.say(str(number), Phase.ENDED, "TIMEOUT")
        records.append(watched(cluster))
    assert records[:-1] == [None] * (engine_watch.MOST_JOBS - 1) and records[-1]["outcome"] == "limit"
    assert len(cluster.engine.jobs) == engine_watch.MOST_JOBS


@pytest.mark.parametrize(("ran_s", "outcome"), [(3500.0, None), (3560.0, "limit")])
def test_out_of_time_is_the_jobs_or_the_runs(cluster: Cluster, ran_s: float, outcome: str | None) -> None:
    """Slurm killed everything before the script could requeue: where the run's own limits leave time, it goes on."""
    trains(cluster)
    cluster.most_s = 3600.0
    cluster.engine.spans = [Span("TIMEOUT", ran_s, 1, 1)]
    cluster.engine.say("17", Phase.ENDED, "TIMEOUT")
    record = watched(cluster)
    assert (record and record["outcome"]) == outcome
    assert list(cluster.engine.jobs) == (["17"] if outcome else ["17", "18"])


@pytest.mark.parametrize("call", ["find", "usage", "submit"])
def test_a_queue_that_falls_silent_at_the_end_decides_nothing(
    cluster: Cluster, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains(cluster)
    cluster.most_s = 3600.0
    cluster.engine.say("17", Phase.ENDED, "TIMEOUT")

    def fail(*_: object) -> None:
        raise NoAnswer("silent")

    with monkeypatch.context() as silent:
        silent.setattr(cluster.engine, call, fail)
        assert watched(cluster) is None
    assert watched(cluster) is None and list(cluster.engine.jobs) == ["17", "18"]


@pytest.mark.parametrize("error", [NoAnswer("silent"), MachineUnfit("squeue is not there")])
def test_a_login_node_without_its_slurm_decides_nothing(
    cluster: Cluster, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains(cluster)

    def fail(job: str) -> JobView:
        raise error

    monkeypatch.setattr(cluster.engine, "look", fail)
    assert watched(cluster) is None


def test_what_the_script_said_last_is_the_cause(cluster: Cluster) -> None:
    trains(cluster)
    cluster.engine.say("17", Phase.ENDED, "FAILED")
    cluster.files["/shared/runs/r-1/slurm.log"] = "OSError: [Errno 122] Disk quota exceeded\n"
    cluster.full = True
    record = watched(cluster)
    assert record["outcome"] == "failed"
    assert record["reason"] == "job 17 ended as FAILED and left no record: OSError: [Errno 122] Disk quota exceeded"


def test_a_silent_engine_is_not_needed_to_stop(cluster: Cluster) -> None:
    trains(cluster)
    cluster.engine.silent = True
    engine_job.stop(cluster.of("r-1"))
    assert cluster.ended == {"r-1"} and cluster.engine.cancelled == []


def test_a_job_that_outlives_its_record_is_cancelled(cluster: Cluster) -> None:
    trains(cluster)
    cluster.engine.say("17", Phase.RUNNING, "RUNNING")
    cluster.ended.add("r-1")
    engine_job.stop(cluster.of("r-1"))
    assert cluster.engine.cancelled == ["17"]


@pytest.mark.parametrize("noted", [(Phase.WAITING, "PENDING"), (Phase.ENDED, "COMPLETED")])
def test_a_job_that_nobody_noted_is_stopped_too(cluster: Cluster, noted: tuple[Phase, str]) -> None:
    """Its submission went through after its gptctl was killed; the job that is noted waits behind it, or has ended."""
    trains(cluster)
    cluster.engine.jobs["18"] = (cluster.engine.jobs["17"][0], JobView("18", Phase.RUNNING, "RUNNING"))
    cluster.engine.say("17", *noted)
    engine_job.stop(cluster.of("r-1"))
    assert cluster.of("r-1").facts.engine.jobs == ("17", "18") and "r-1" in cluster.ended
    assert cluster.engine.cancelled == ["17", "18"]


def test_a_job_whose_folder_is_gone_is_cancelled(cluster: Cluster) -> None:
    trains(cluster)
    cluster.gone = True
    engine_job.stop(cluster.of("r-1"))
    assert cluster.engine.cancelled == ["17"]


@pytest.mark.parametrize(
    ("spans", "gpu_hours"),
    [
        pytest.param([Span("REQUEUED", 1800, 1, 1), Span("COMPLETED", 1800, 1, 1)], 1.0, id="every start counts"),
        pytest.param(None, 0.5, id="no books"),
        pytest.param([], 0.5, id="the books have not heard of it"),
        pytest.param([Span("PENDING", 0, 1, 0)], 0.5, id="nor of its start"),
    ],
)
def test_the_bill_is_the_books_or_the_jobs_own_notes(
    cluster: Cluster, spans: Sequence[Span] | None, gpu_hours: float
) -> None:
    trains(cluster)
    cluster.engine.say("17", Phase.ENDED, "COMPLETED")
    cluster.engine.spans = spans
    notes = '{"event": "begin", "time": 0}\n{"event": "alive", "time": 1800}\n'
    cluster.files["/shared/jobs/r-1/train/slurm.jsonl"] = notes
    engine_bill.settle(cluster.of("r-1"))
    assert cluster.of("r-1").facts.engine.gpu_hours == pytest.approx(gpu_hours)


@pytest.mark.parametrize("at", ["NaN", "1e999", "1e300", "-1e300", "true", '"x"', "null"])
def test_no_note_of_a_foreign_machine_breaks_the_bill(at: str) -> None:
    lines = [b'{"event": "begin", "time": 5, "node_count": -3}', f'{{"event": "end", "time": {at}}}'.encode(), b"[]"]
    (span,) = engine_bill.noted(lines, gpus=8)
    assert 0 <= span.seconds <= engine_bill.MOST_S and span.nodes == 1


def test_nothing_was_dealt_to_a_run_alone(cluster: Cluster) -> None:
    engine_job.submit(cluster.of("r-1"), "d", SPEC)
    assert cluster.of("r-1").facts.engine.element == "" and EngineFacts() == cluster.of("r-a").facts.engine

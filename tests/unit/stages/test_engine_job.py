"""A run as a job of an engine: killed anywhere, with answers lost, it has one job; that is found, stopped, billed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.core.engine import JobView, Phase, Span
from orchestrator.core.errors import LinkLost, MachineUnfit, NoAnswer
from orchestrator.core.facts.run_facts import EngineFacts, QueueFacts, RunFacts
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.records import RunRecord
from orchestrator.stages import launch, release
from orchestrator.stages.machine import engine_job, engine_watch
from orchestrator.stages.outcome import engine_bill
from tests.unit.stages.conftest import SPEC, Cluster, Killed


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


def resumed(cluster: Cluster, run: str, monkeypatch: pytest.MonkeyPatch, state: str = "queued") -> None:
    """The launch of `gptctl resume`: the agent says of the run that it waits, or trains."""
    train = {"exit": None, "attempt": 1, "state": state}
    monkeypatch.setattr(launch, "machine_status", lambda _: {"jobs": {"train": train}})
    for other in ("note_attempt", "end_lost"):
        monkeypatch.setattr(launch, other, lambda _: None)
    context: Any = cluster.of(run)
    context.advance = lambda state: None
    launch.launch(context)


@pytest.mark.parametrize("error", [Killed(), LinkLost("link"), NoAnswer("silent")])
@pytest.mark.parametrize("at", ["look", "let_go"])
def test_an_element_that_was_not_let_go_is_let_go_by_resume(
    cluster: Cluster, at: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was noted, and gptctl went away before it let it go: held, it would wait for ever."""

    def fail(job: str) -> None:
        raise error

    with monkeypatch.context() as broken, pytest.raises(type(error)):
        broken.setattr(cluster.engine, at, fail)
        engine_job.submit(cluster.of("r-a"), "d", SPEC)
    assert cluster.of("r-a").facts.engine.jobs == ("17_0",) and cluster.engine.free == []
    resumed(cluster, "r-a", monkeypatch)
    assert cluster.engine.free == ["17_0"]


def test_a_silent_engine_is_not_needed_to_resume_what_trains(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_job.submit(cluster.of("r-a"), "d", SPEC)
    cluster.engine.silent = True
    resumed(cluster, "r-a", monkeypatch, "running")
    assert cluster.engine.free == ["17_0"], "once, at its submission"
    with pytest.raises(NoAnswer):
        resumed(cluster, "r-a", monkeypatch)


def test_a_job_of_its_own_is_not_let_go(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that you hold with scontrol stays held."""
    engine_job.submit(cluster.of("r-1"), "d", SPEC)
    resumed(cluster, "r-1", monkeypatch)
    assert cluster.engine.free == []


def ended_unreached(cluster: Cluster, run: str, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> Any:
    """The release of an arm that no gptctl has driven to the cluster."""
    context: Any = cluster.of(run)
    cluster.ledger.set_state(run, State.ENDING, outcome=Outcome.STOPPED, cause="asked by the user")
    if facts:
        context.set_run_facts(**facts)
    context.machine_facts = SimpleNamespace(reached=None, life=SimpleNamespace(gone_at=None))
    context.provider = SimpleNamespace(paid=False)
    monkeypatch.setattr(release.run_report, "write", lambda _: None)
    monkeypatch.setattr(release.home_box_job, "stop", lambda _: None)
    release.release(context)
    cluster.ledger.set_state(run, State.ENDED)
    return context


def test_the_element_of_an_arm_that_was_never_launched_is_cancelled_with_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held, it would stay in the queue for ever."""
    engine_job.submit(cluster.of("r-a"), "d", SPEC)
    ended_unreached(cluster, "r-c", monkeypatch)
    assert set(cluster.engine.cancelled) == {"17_2"}
    ended_unreached(cluster, "r-b", monkeypatch, abandon=True)
    assert set(cluster.engine.cancelled) == {"17_2"}, "with --force the host need not answer"
    ended_unreached(cluster, "r-1", monkeypatch)
    assert set(cluster.engine.cancelled) == {"17_2"}, "a run without an element asks nobody"


def test_an_arm_that_ended_before_the_array_was_submitted_leaves_no_element(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise Killed

    with monkeypatch.context() as killed, pytest.raises(Killed):
        killed.setattr(cluster.engine, "script", fail)
        engine_job.submit(cluster.of("r-a"), "d", SPEC)
    ended_unreached(cluster, "r-b", monkeypatch)
    engine_job.submit(cluster.of("r-a"), "d", SPEC)
    assert cluster.engine.cancelled == ["17_1"] and cluster.engine.arms == {"17": ("r-a", "r-b", "r-c")}


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


def test_one_that_trains_saves_though_another_that_nobody_noted_waits(cluster: Cluster) -> None:
    """Its script was submitted twice; the one that waits has a higher number, and must not be asked in its place."""
    trains(cluster)
    cluster.engine.say("17", Phase.RUNNING, "RUNNING")
    cluster.engine.jobs["18"] = (cluster.engine.jobs["17"][0], JobView("18", Phase.WAITING, "PENDING"))
    context: Any = cluster.of("r-1")

    def save(run: str) -> None:
        cluster.ended.add(run)
        cluster.engine.say("17", Phase.ENDED, "COMPLETED")

    context.agent.stop = save
    engine_job.stop(context)
    assert cluster.ended == {"r-1"} and cluster.engine.cancelled == ["18"]
    assert context.facts.engine.jobs == ("18", "17") and not any(name.endswith("exit.json") for name in cluster.files)


def test_a_job_that_cannot_be_cancelled_keeps_no_other_one_running(cluster: Cluster) -> None:
    trains(cluster)
    cluster.engine.jobs["18"] = (cluster.engine.jobs["17"][0], JobView("18", Phase.RUNNING, "RUNNING"))

    def cancel(job: str) -> None:
        cluster.engine.cancelled.append(job)
        if job == "17":
            raise NoAnswer("c: Slurm does not answer")

    cluster.engine.cancel = cancel  # type: ignore[method-assign]
    with pytest.raises(NoAnswer):
        engine_job.stop(cluster.of("r-1"))
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


def test_a_job_that_ended_before_it_was_noted_is_billed(cluster: Cluster) -> None:
    """gptctl was killed between its submission and the note; it trained on for hours, and ended by itself."""
    trains(cluster)
    cluster.engine.say("17", Phase.ENDED, "NODE_FAIL")
    cluster.engine.die_after_submit = True
    with pytest.raises(Killed):
        watched(cluster)
    cluster.engine.say("18", Phase.ENDED, "COMPLETED")
    cluster.ended.add("r-1")
    cluster.engine.spans = [Span("NODE_FAIL", 3600, 1, 1), Span("COMPLETED", 5 * 3600, 1, 1)]
    engine_job.attach(cluster.of("r-1"))
    engine_job.stop(cluster.of("r-1"))
    engine_bill.settle(cluster.of("r-1"))
    assert cluster.engine.asked == ["17", "18"]
    assert cluster.of("r-1").facts.engine.jobs == ("17", "18") and cluster.of("r-1").facts.engine.gpu_hours == 6.0


NOTES = """{"event": "begin", "time": 0}
{"event": "end", "time": 1800}
{"event": "begin", "time": 4000}
{"event": "end", "time": 11200}
"""


@pytest.mark.parametrize(
    ("newest", "gpu_hours"),
    [
        pytest.param([Span("PENDING", 0, 1, 0, is_over=False)], 2.5, id="they have not heard of its second start"),
        pytest.param([Span("RUNNING", 90_000, 1, 1, is_over=False)], 2.5, id="nor of its end: sacct counts up to now"),
        pytest.param([], 2.5, id="nor that it was requeued"),
        pytest.param([Span("COMPLETED", 7210, 1, 1)], 9010 / 3600, id="they are complete, and count what no note says"),
        pytest.param([Span("COMPLETED", 7190, 1, 1)], 8990 / 3600, id="clocks are a little apart"),
    ],
)
def test_books_that_lag_behind_the_jobs_own_notes_are_not_the_bill(
    cluster: Cluster, newest: list[Span], gpu_hours: float
) -> None:
    trains(cluster)
    cluster.engine.say("17", Phase.ENDED, "COMPLETED")
    cluster.engine.spans = [Span("REQUEUED", 1800, 1, 1), *newest]
    cluster.files["/shared/jobs/r-1/train/slurm.jsonl"] = NOTES
    engine_bill.settle(cluster.of("r-1"))
    engine = cluster.of("r-1").facts.engine
    assert engine.gpu_hours == pytest.approx(gpu_hours) and engine.starts == 2


def test_the_bill_needs_the_books_and_no_controller(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """slurmctld is away as the run is stopped; what another job trained is in the notes all jobs share."""
    trains(cluster)
    cluster.engine.silent = True

    def fail(name: str) -> Sequence[str]:
        raise NoAnswer("c: Slurm does not answer")

    monkeypatch.setattr(cluster.engine, "find", fail)
    cluster.engine.spans = [Span("NODE_FAIL", 1810, 1, 1)]
    cluster.files["/shared/jobs/r-1/train/slurm.jsonl"] = NOTES
    engine_bill.settle(cluster.of("r-1"))
    assert cluster.engine.asked == ["17"] and cluster.of("r-1").facts.engine.gpu_hours == 2.5


def test_without_notes_unfinished_books_are_the_bill(cluster: Cluster) -> None:
    trains(cluster)
    cluster.engine.say("17", Phase.ENDED, "COMPLETED")
    cluster.engine.spans = [Span("RUNNING", 1800, 1, 1, is_over=False)]
    engine_bill.settle(cluster.of("r-1"))
    assert cluster.of("r-1").facts.engine.gpu_hours == 0.5


def test_books_without_cards_count_those_of_the_machine(cluster: Cluster) -> None:
    """The site does not track gres/gpu."""
    trains(cluster)
    cluster.engine.say("17", Phase.ENDED, "COMPLETED")
    cluster.engine.spans = [Span("COMPLETED", 3600, 2, 0)]
    context: Any = cluster.of("r-1")
    context.machine.gpus, context.machine.nodes = 16, 2
    engine_bill.settle(context)
    assert context.facts.engine.gpu_hours == 16.0


@pytest.mark.parametrize("at", ["NaN", "1e999", "1e300", "-1e300", "true", '"x"', "null"])
def test_no_note_of_a_foreign_machine_breaks_the_bill(at: str) -> None:
    lines = [b'{"event": "begin", "time": 5, "node_count": -3}', f'{{"event": "end", "time": {at}}}'.encode(), b"[]"]
    (span,) = engine_bill.noted(lines, gpus=8)
    assert 0 <= span.seconds <= engine_bill.MOST_S and span.nodes == 1


def test_nothing_was_dealt_to_a_run_alone(cluster: Cluster) -> None:
    engine_job.submit(cluster.of("r-1"), "d", SPEC)
    assert cluster.of("r-1").facts.engine.element == "" and EngineFacts() == cluster.of("r-a").facts.engine

"""Why a start of a Slurm job ended, and whether another one continues it: by the cases that a real Slurm showed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.agent import scontrol, slurm, slurm_rules
from orchestrator.agent.contract.names import JobName
from orchestrator.agent.job.jobs import Job
from orchestrator.agent.system.paths import Places
from trainer import run_files


@pytest.mark.parametrize(
    ("outcome", "again", "restarted", "asked", "verdict"),
    [
        pytest.param("finished", "", False, False, slurm_rules.ENDED, id="all steps done"),
        pytest.param("stopped", "preempted", False, False, slurm_rules.REQUEUE, id="preempted with a grace"),
        pytest.param("stopped", "time", False, False, slurm_rules.REQUEUE, id="the time is nearly up"),
        pytest.param("stopped", "", False, False, slurm_rules.CANCELLED, id="scancel: it must not rise from the dead"),
        pytest.param("stopped", "", True, False, slurm_rules.RETURNS, id="requeued by others, no grace, a lost node"),
        pytest.param(None, "", True, False, slurm_rules.RETURNS, id="killed with its node"),
        pytest.param("failed", "", False, False, slurm_rules.ENDED, id="the training failed"),
        pytest.param("failed", "preempted", False, False, slurm_rules.ENDED, id="failed in the grace"),
        pytest.param("stopped", "preempted", False, True, slurm_rules.ENDED, id="you asked for the end meanwhile"),
        pytest.param("finished", "time", False, False, slurm_rules.ENDED, id="finished in the last moment"),
    ],
)
def test_only_slurm_knows_whether_it_comes_back(
    outcome: str | None, again: str, restarted: bool, asked: bool, verdict: str
) -> None:
    assert slurm_rules.what_next(outcome, again, restarted=restarted, asked=asked, why="") == verdict


def test_what_speaks_against_another_start_is_said() -> None:
    why = "3 starts in a row trained nothing"
    assert slurm_rules.what_next("stopped", "preempted", restarted=False, asked=False, why=why) == why


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"JobState": "RUNNING", "Restarts": "0", "PreemptTime": "2026-11-29T18:12:41"}, slurm.PREEMPTED),
        ({"JobState": "COMPLETING", "Restarts": "0", "PreemptTime": "None"}, ""),
        ({"JobState": "COMPLETING", "Restarts": "0", "PreemptTime": "None", "Reason": "TimeLimit"}, slurm.TIME),
        ({"JobState": "COMPLETING", "Restarts": "1"}, ""),
        ({"JobState": "COMPLETING", "Restarts": "1", "PreemptTime": "2026-11-29T18:12:41"}, ""),
        ({}, ""),
    ],
)
def test_sigterm_is_a_preemption_only_where_slurm_names_its_time(
    said: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert slurm.why_it_comes_back(said) == why


def test_the_time_of_all_starts_counts() -> None:
    lines = [
        {"event": "begin", "time": 10.0}, {"event": "end", "time": 40.0}, {"event": "begin", "time": 100.0},
        {"event": "begin", "time": 200.0}, {"event": "end", "time": 205.0},
    ]  # fmt: skip
    assert slurm_rules.trained_s(lines) == 35.0


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        pytest.param([("begin", 10), ("alive", 70), ("begin", 200), ("end", 230)], 90, id="killed: to its last note"),
        pytest.param([("begin", 10), ("alive", 70)], 60, id="killed, and never again"),
        pytest.param([("begin", 100), ("end", 90), ("begin", 95), ("end", 110)], 10, id="clocks apart cost no time"),
        pytest.param([], 0, id="never started"),
    ],
)
def test_a_start_lasted_until_its_last_note(lines: list[tuple[str, float]], seconds: float) -> None:
    assert slurm_rules.trained_s([{"event": event, "time": at} for event, at in lines]) == seconds


@pytest.mark.parametrize(
    ("said", "seconds"), [("01:00:00", 3600), ("1-04:00:00", 100_800), ("UNLIMITED", math.inf), ("", math.inf)]
)
def test_the_limit_of_a_job_is_read_as_scontrol_prints_it(said: str, seconds: float) -> None:
    assert slurm_rules.limit_s(said) == seconds


class Cluster:
    """What scontrol says of jobs, and what it was asked to do; a job whose start is this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **spec: object) -> None:
        self.said: dict[str, dict[str, str]] = {}
        self.ordered: list[list[str]] = []
        self.monkeypatch = monkeypatch
        places = Places(str(folder / "agent" / "agent.pyz"))
        self.job = Job(places, "tiny-1130-abcdef", JobName.TRAIN, "d", {"ranks": 1, **spec})  # type: ignore[typeddict-item]
        for made in (self.job.folder, self.job.run_folder):
            Path(made).mkdir(parents=True)
        monkeypatch.setattr(scontrol, "told", lambda job_id: self.said.get(job_id, {}))
        self.refusals: list[str] = []
        """What scontrol says to the next orders; then it carries them out."""
        monkeypatch.setattr(scontrol, "subprocess", SimpleNamespace(run=self.scontrol, PIPE=-1))
        self.waited_s: list[float] = []
        self.after_a_wait: Callable[[], object] = lambda: None
        clock = SimpleNamespace(time=time.time, sleep=self.sleep, monotonic=lambda: sum(self.waited_s))
        for module in (slurm, scontrol):
            monkeypatch.setattr(module, "time", clock)
        self.is_job("17")

    def scontrol(self, argv: list[str], **_: object) -> SimpleNamespace:
        self.ordered.append(argv)
        refusal = self.refusals.pop(0) if self.refusals else ""
        return SimpleNamespace(returncode=1 if refusal else 0, stderr=refusal.encode())

    def sleep(self, seconds: float) -> None:
        self.waited_s.append(seconds)
        self.after_a_wait()

    def trainer_said(self, text: str) -> None:
        (Path(self.job.run_folder) / run_files.EXIT).write_text(text)

    def is_job(self, number: str, restart: int = 0, **more: str) -> None:
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            self.monkeypatch.delenv(name, raising=False)
        for name, value in {"SLURM_JOB_ID": number, "SLURM_RESTART_COUNT": str(restart), **more}.items():
            self.monkeypatch.setenv(name, value)

    def write(self, *lines: tuple[str, float]) -> None:
        for event, at in lines:
            slurm._note(self.job, {"event": event, "time": at})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch, deadline_s=3600.0)


def test_the_last_element_of_a_sweep_is_asked_for_alone(cluster: Cluster) -> None:
    """Its SLURM_JOB_ID is the number of the whole array: `scontrol requeue 17` starts every run of the sweep again."""
    cluster.is_job("17", SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="2")
    cluster.said = {"17": {"Restarts": "1"}, "17_2": {"Restarts": "0"}}
    slurm._stop_to_continue(cluster.job, slurm.PREEMPTED)
    (Path(cluster.job.run_folder) / run_files.EXIT).write_text('{"outcome": "stopped", "step": 3}')
    asked: list[str] = []
    cluster.monkeypatch.setattr(slurm, "_requeue", asked.append)
    slurm.end(cluster.job, 0)
    assert asked == ["17_2"]


def test_a_start_has_what_the_starts_before_it_left_of_the_limits(cluster: Cluster) -> None:
    cluster.said = {"17": {"TimeLimit": "01:00:00"}}
    assert slurm.begin(cluster.job) == 0 and cluster.ordered == []
    cluster.write(("alive", time.time() + 2700))
    cluster.is_job("17", restart=1)
    assert slurm.begin(cluster.job) == 0
    assert cluster.ordered == [["scontrol", "update", "JobId=17", "TimeLimit=15"]]


def test_a_run_that_used_up_its_limits_does_not_start_again(cluster: Cluster) -> None:
    cluster.write(("begin", 1.0), ("alive", 3602.0))
    assert slurm.begin(cluster.job) == 1
    record = cluster.job.exit_record()
    assert record is not None and record["outcome"] == "limit"


@pytest.mark.parametrize(
    ("steps", "starts"),
    [
        pytest.param([0, 0, 0, 0], 3, id="killed before its first checkpoint"),
        pytest.param([0, 40, 80, 120], 4, id="each start saves something"),
        pytest.param([40, 40, 40, 40], 3, id="each start is too short"),
    ],
)
def test_jobs_that_are_killed_without_a_word_and_train_nothing_are_not_repeated_for_ever(
    steps: list[int], starts: int, cluster: Cluster
) -> None:
    """Out of time, and Slurm kills them before they can save: gptctl submits each again."""
    begun = []
    for number, step in enumerate(steps):
        cluster.is_job(str(17 + number))
        begun.append(slurm.begin(cluster.job))
        folder = Path(cluster.job.run_folder) / run_files.CHECKPOINTS / f"step-{step:08d}"
        if step and begun[-1] == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / run_files.MANIFEST_FILE).touch()
    assert begun == [0] * starts + [1] * (len(steps) - starts)
    record = cluster.job.exit_record()
    assert (record is None) is (starts == len(steps))
    assert record is None or (record["reason"] or "").startswith("3 starts in a row trained nothing")


def test_a_job_that_slurm_requeues_itself_is_slurms_to_count(cluster: Cluster) -> None:
    """Preempted three times in its first seconds."""
    assert [cluster.is_job("17", restart=number) or slurm.begin(cluster.job) for number in range(5)] == [0] * 5


def test_two_jobs_of_one_run_never_train_at_once(cluster: Cluster) -> None:
    """Its script was submitted twice: the second start leaves the first, and its folder, alone."""
    assert slurm.begin(cluster.job) == 0
    cluster.said = {"17": {"JobState": "RUNNING"}}
    cluster.is_job("18")
    assert slurm.begin(cluster.job) == 1 and cluster.job.exit_record() is None
    cluster.said = {"17": {"JobState": "PREEMPTED"}}
    assert slurm.begin(cluster.job) == 0, "one that has ended is in nobody's way"


def test_a_job_whose_end_slurm_has_decided_leaves_the_record_to_who_sees_it(cluster: Cluster) -> None:
    """Out of time, and it cannot be requeued any more: a record would end the run that gptctl is to submit again."""
    assert slurm.begin(cluster.job) == 0
    slurm._stop_to_continue(cluster.job, slurm.TIME)
    (Path(cluster.job.run_folder) / run_files.EXIT).write_text('{"outcome": "stopped", "step": 3}')
    cluster.monkeypatch.setattr(slurm, "_requeue", lambda job: None)
    cluster.said = {"17": {"Restarts": "0", "JobState": "COMPLETING", "Reason": "TimeLimit"}}
    assert slurm.end(cluster.job, 0) == 1 and cluster.job.exit_record() is None
    cluster.said = {"17": {"Restarts": "0", "JobState": "RUNNING"}}
    slurm.end(cluster.job, 0)
    record = cluster.job.exit_record()
    assert record is not None and record["outcome"] == "limit"


RUNS = {"JobState": "RUNNING", "Restarts": "0"}
PREEMPTED = {**RUNS, "PreemptTime": "2026-11-29T18:12:41"}
SAVED = '{"outcome": "stopped", "step": 30}'
SILENT = "slurm_requeue error: Unable to contact slurm controller (connect failure)"


def begun(cluster: Cluster) -> None:
    assert slurm.begin(cluster.job) == 0
    cluster.ordered.clear()


def test_a_preemption_is_seen_at_the_end_where_slurm_was_silent_at_its_sigterm(cluster: Cluster) -> None:
    """It would be recorded as cancelled with scancel, and the run would end."""
    begun(cluster)
    cluster.trainer_said(SAVED)
    cluster.said = {"17": PREEMPTED}
    cluster.refusals = ["Job/step already completing or completed"]
    slurm.end(cluster.job, 0)
    assert cluster.ordered == [["scontrol", "requeue", "17"]]
    record = cluster.job.exit_record()
    assert record is not None and record["outcome"] == "preempted", "where it is refused"


@pytest.mark.parametrize(
    ("trainer", "later", "ordered"),
    [
        pytest.param(SAVED, PREEMPTED, [["scontrol", "requeue", "17"]], id="preempted"),
        pytest.param(SAVED, RUNS, [], id="scancel"),
        pytest.param('{"outcome": "failed", "step": 30}', RUNS, [["scontrol", "requeue", "17"]], id="it died"),
        pytest.param('{"outcome": "failed", "step": 30}', {**RUNS, "Restarts": "1"}, [], id="requeued by others"),
    ],
)
def test_the_end_waits_for_slurms_word(
    trainer: str, later: dict[str, str], ordered: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, monkeypatch, restarts=2)
    begun(cluster)
    Path(cluster.job.run_folder, run_files.METRICS).write_text('{"step": 30, "loss": 1.0}\n')
    cluster.trainer_said(trainer)
    answers = iter([{}, {}, {"17": later}])
    cluster.after_a_wait = lambda: setattr(cluster, "said", next(answers, cluster.said))
    slurm.end(cluster.job, 1)
    assert cluster.ordered == ordered and cluster.waited_s[:3] == [scontrol.ASK_EVERY_S] * 3


@pytest.mark.parametrize("trainer", ['{"outcome": "finished", "step": 80}', '{"outcome": "failed", "step": 30}'])
def test_a_verdict_needs_no_slurm_where_it_changes_nothing(cluster: Cluster, trainer: str) -> None:
    """All is done, or the recipe lets it start no more."""
    begun(cluster)
    cluster.trainer_said(trainer)
    slurm.end(cluster.job, 0)
    assert cluster.job.exit_record() is not None
    assert sum(cluster.waited_s) <= (0 if "finished" in trainer else scontrol.SILENT_FOR_S)


@pytest.mark.parametrize("again", [slurm.TIME, ""])
def test_slurms_long_silence_ends_no_run(cluster: Cluster, again: str) -> None:
    """Without a record, gptctl takes the verdict from Slurm, once that answers."""
    begun(cluster)
    if again:
        slurm._stop_to_continue(cluster.job, again)
    cluster.trainer_said(SAVED)
    cluster.refusals = [SILENT] * 100
    assert slurm.end(cluster.job, 0) == 1
    assert cluster.job.exit_record() is None
    assert (len(cluster.ordered) > 3) is bool(again) and sum(cluster.waited_s) <= 2 * scontrol.SILENT_FOR_S + 10


def test_a_requeue_is_repeated_while_the_controller_is_silent(cluster: Cluster) -> None:
    begun(cluster)
    slurm._stop_to_continue(cluster.job, slurm.TIME)
    cluster.trainer_said(SAVED)
    cluster.said = {"17": RUNS}
    cluster.refusals = [SILENT, SILENT]

    def requeued() -> None:
        """Slurm's own SIGKILL."""
        if cluster.waited_s[-1] == slurm.REQUEUED_WITHIN_S:
            raise SystemExit

    cluster.after_a_wait = requeued
    with pytest.raises(SystemExit):
        slurm.end(cluster.job, 0)
    assert cluster.ordered == [["scontrol", "requeue", "17"]] * 3 and cluster.job.exit_record() is None


def test_a_requeue_whose_answer_was_lost_is_not_refused(cluster: Cluster) -> None:
    """Done the first time; the second time the job is already on its way back."""
    begun(cluster)
    slurm._stop_to_continue(cluster.job, slurm.TIME)
    cluster.trainer_said(SAVED)
    cluster.said = {"17": RUNS}
    cluster.refusals = ["Socket timed out on send/recv operation", "Job is pending execution"]
    cluster.after_a_wait = lambda: setattr(cluster, "said", {"17": {"JobState": "PENDING", "Restarts": "1"}})
    slurm.end(cluster.job, 0)
    assert len(cluster.ordered) == 2 and cluster.job.exit_record() is None


def test_the_limit_of_a_start_is_set_again_while_the_controller_is_silent(cluster: Cluster) -> None:
    cluster.write(("begin", 1000.0), ("end", 1000.0 + 1800))
    cluster.is_job("17", restart=1)
    cluster.said = {"17": {"TimeLimit": "04:00:00"}}
    cluster.refusals = [SILENT]
    assert slurm.begin(cluster.job) == 0
    assert cluster.ordered == [["scontrol", "update", "JobId=17", "TimeLimit=30"]] * 2


def test_a_start_that_was_overtaken_leaves_everything_to_the_later_one(cluster: Cluster) -> None:
    """Slurm lost its node and started the job elsewhere; here it lives on."""
    assert slurm.begin(cluster.job) == 0
    cluster.is_job("17", restart=1)
    assert slurm.begin(cluster.job) == 0
    assert cluster.waited_s == [slurm.HANDS_OVER_S] and slurm.HANDS_OVER_S > slurm.LOOK_EVERY_S
    cluster.is_job("17", restart=0)
    slurm._stop_to_continue(cluster.job, slurm.TIME)
    assert slurm.end(cluster.job, 1) == 0
    assert cluster.job.exit_record() is None and not (Path(cluster.job.run_folder) / run_files.STOP).exists()


@pytest.mark.parametrize(
    ("spec", "state", "steps", "requeued"),
    [
        pytest.param({"restarts": 2}, "RUNNING", [10, 20, 30], [True, True, False], id="as often as the recipe says"),
        pytest.param({"restarts": 2}, "RUNNING", [10, 10], [True, False], id="never twice at one step"),
        pytest.param({"restarts": 0}, "RUNNING", [10], [False], id="never"),
        pytest.param({"restarts": 2}, "COMPLETING", [10], [False], id="scancel killed it before it could save"),
    ],
)
def test_a_training_that_died_is_requeued(
    spec: dict[str, object],
    state: str,
    steps: list[int],
    requeued: list[bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(tmp_path, monkeypatch, **spec)
    asked: list[str] = []

    def requeue(job: str) -> None:
        """Ends the script where it stands."""
        asked.append(job)
        raise SystemExit

    monkeypatch.setattr(slurm, "_requeue", requeue)
    for restart, (step, again) in enumerate(zip(steps, requeued, strict=True)):
        cluster.is_job("17", restart=restart)
        cluster.said = {"17": {"JobState": state, "Restarts": str(restart)}}
        assert slurm.begin(cluster.job) == 0
        run_folder = Path(cluster.job.run_folder)
        (run_folder / run_files.METRICS).write_text(f'{{"step": {step}, "loss": 1.0}}\n')
        (run_folder / run_files.EXIT).write_text(f'{{"outcome": "failed", "step": {step}}}')
        if again:
            with pytest.raises(SystemExit):
                slurm.end(cluster.job, 1)
            assert cluster.job.exit_record() is None
        else:
            slurm.end(cluster.job, 1)
            record = cluster.job.exit_record()
            assert record is not None and record["outcome"] == "failed"
    assert len(asked) == sum(requeued)

"""What a machine's queue starts next, and what it never will: rows of facts, without a process, a file or a clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.agent.contract.names import JobName
from orchestrator.agent.contract.requests import StopRule
from orchestrator.agent.job import exit_record
from orchestrator.agent.job.jobs import Job
from orchestrator.agent.queue import entries
from orchestrator.agent.queue.choice import Ended, Machine, Waiting, choose, is_bad_machine, pace
from orchestrator.agent.queue.early_stop import verdict, why
from orchestrator.agent.queue.runner import Runner
from orchestrator.agent.system import processes
from orchestrator.agent.system.paths import Places

HOUR = 3600.0
LONG, SHORT = Waiting("long", 4 * HOUR, 600), Waiting("short", HOUR, 600)


@pytest.mark.parametrize(
    ("waiting", "machine", "start", "skipped"),
    [
        pytest.param([], Machine(), None, [], id="nothing waits"),
        pytest.param([LONG, SHORT], Machine(), "long", [], id="nothing ends the machine"),
        pytest.param([LONG, SHORT], Machine(5 * HOUR), "long", [], id="the first one fits"),
        pytest.param([LONG, SHORT], Machine(4 * HOUR), "short", ["long"], id="its reserve does not: a shorter one"),
        pytest.param([LONG, SHORT], Machine(HOUR), None, ["long", "short"], id="none fits"),
        pytest.param([SHORT], Machine(2 * HOUR, pace=3.0), None, ["short"], id="the last one took three times as long"),
        pytest.param([Waiting("a")], Machine(-1.0), None, ["a"], id="no forecast, and the time is over"),
        pytest.param([Waiting("a")], Machine(1.0), "a", [], id="no forecast, and there is time"),
        pytest.param([SHORT._replace(group_left_s=60)], Machine(), None, ["short"], id="its group has used its time"),
        pytest.param([SHORT._replace(disk_bytes=9)], Machine(free_bytes=8), None, ["short"], id="a full disk"),
        pytest.param(
            [SHORT._replace(disk_bytes=9), LONG], Machine(free_bytes=8, is_storing=True), None, [],
            id="a disk that the store is emptying is waited for",
        ),
    ],
)  # fmt: skip
def test_the_first_that_fits_starts(
    waiting: list[Waiting], machine: Machine, start: str | None, skipped: list[str]
) -> None:
    found = choose(waiting, machine)
    assert (found.start, list(found.skipped)) == (start, skipped)
    assert all("left under the ceiling" in why or "GB are free" in why for why in found.skipped.values())


def ended(run: str, at: float, outcome: str = "failed", lasted_s: float = 9, reason: str = "a GPU") -> Ended:
    return Ended(run, run, outcome, reason, lasted_s, 100.0, at)


@pytest.mark.parametrize(
    ("runs", "bad"),
    [
        pytest.param([ended("a", 1), ended("b", 2)], True, id="two arms, one cause, at once"),
        pytest.param([ended("a", 1), ended("a", 2)], False, id="two seeds of one arm: its own fault"),
        pytest.param([ended("a", 1), ended("b", 2, reason="its own")], False, id="two causes"),
        pytest.param([ended("a", 1), ended("b", 2, lasted_s=HOUR)], False, id="one had trained"),
        pytest.param([ended("a", 1), ended("b", 2), ended("c", 3, "finished")], False, id="the last one went well"),
        pytest.param([ended("a", -2), ended("b", -1)], False, id="before these came"),
    ],
)
def test_two_arms_that_fail_alike_at_once_mean_a_bad_machine(runs: list[Ended], bad: bool) -> None:
    assert bool(is_bad_machine(runs, since=0.0)) is bad


def test_the_pace_is_that_of_the_newest_that_finished() -> None:
    long = [ended("a", 1, "finished", HOUR / 2), ended("b", 2, "finished", 1.5 * HOUR), ended("c", 3)]
    assert pace([]) == 1.0
    assert pace([each._replace(needs_s=HOUR) for each in long]) == 1.5


def test_a_short_training_says_nothing_about_the_pace_of_a_long_one() -> None:
    assert pace([ended("a", 1, "finished", 90.0)._replace(needs_s=9.0)]) == 1.0


def test_a_look_at_what_waits_does_not_walk_through_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(str(tmp_path / "agent" / "agent.pyz"))
    job = Job(places, "r-1", JobName.TRAIN, "d" * 16, {"queue": {"arm": "a"}})
    entries.add(places, job)
    monkeypatch.setattr(processes, "of_job", lambda folder: pytest.fail("it looked at every process"))
    runner = Runner(places)
    assert not runner._has_started("r-1") and runner._running() == []
    exit_record.write_unstarted(job, "stopped", "dropped")
    assert runner._has_started("r-1")


@pytest.mark.parametrize(
    ("arm", "step", "margin", "ends"),
    [
        pytest.param({100: 9.0, 200: 3.4}, 200, 0.1, True, id="worse than the margin at the step"),
        pytest.param({200: 3.29}, 200, 0.1, False, id="within the margin"),
        pytest.param({100: 9.0}, 200, 0.1, False, id="not there yet"),
        pytest.param({200: 3.2, 300: 9.0}, 200, 0.1, False, id="only the first common step counts"),
        pytest.param({250: 9.0}, 200, 0.1, False, id="the baseline was not validated there"),
        pytest.param({300: 9.0}, 200, 0.1, True, id="the first common step may come later"),
    ],
)
def test_an_arm_ends_early_by_one_comparison(arm: dict[int, float], step: int, margin: float, ends: bool) -> None:
    assert bool(verdict(arm, {100: 5.0, 200: 3.2, 300: 3.0}, step, margin)) is ends


@pytest.mark.parametrize(
    ("here", "losses", "ends"),
    [
        pytest.param({}, [], False, id="nothing is known of the baseline"),
        pytest.param({}, [[200, 3.2]], True, id="it ended on the machine before: its caller's losses count"),
        pytest.param({200: 3.35}, [[200, 3.2]], False, id="it goes on here: what is here counts"),
        pytest.param({}, [["x", 3.2], [200], 7, [200, "3"]], False, id="what is no pair of numbers is left out"),
        pytest.param({}, None, False, id="a caller of another version"),
    ],
)
def test_a_baseline_of_another_machine_ends_an_arm_too(
    tmp_path: Path, here: dict[int, float], losses: list[list[float]], ends: bool
) -> None:
    for name, validated in (("arm", {200: 3.4}), ("base", here)):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"event": "validated", "step": each, "val_loss": validated[each]}) for each in validated]
        (tmp_path / name / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    rule: StopRule = {"baseline": "base", "step": 200, "margin": 0.1, "losses": losses}
    assert bool(why(str(tmp_path / "arm"), str(tmp_path / "base"), rule)) is ends

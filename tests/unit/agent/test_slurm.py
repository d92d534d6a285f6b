"""Why a start of a Slurm job ended, and whether another one continues it: by the cases that a real Slurm showed."""

from __future__ import annotations

import pytest

from orchestrator.agent import slurm


@pytest.mark.parametrize(
    ("outcome", "again", "restarted", "asked", "verdict"),
    [
        pytest.param("finished", "", False, False, slurm.ENDED, id="all steps done"),
        pytest.param("stopped", "preempted", False, False, slurm.REQUEUE, id="preempted with a grace"),
        pytest.param("stopped", "time", False, False, slurm.REQUEUE, id="the time is nearly up"),
        pytest.param("stopped", "", False, False, slurm.CANCELLED, id="scancel: it must not rise from the dead"),
        pytest.param("stopped", "", True, False, slurm.RETURNS, id="requeued by others, no grace, a lost node"),
        pytest.param(None, "", True, False, slurm.RETURNS, id="killed with its node"),
        pytest.param("failed", "", False, False, slurm.ENDED, id="the training failed"),
        pytest.param("failed", "preempted", False, False, slurm.ENDED, id="failed in the grace"),
        pytest.param("stopped", "preempted", False, True, slurm.ENDED, id="you asked for the end meanwhile"),
        pytest.param("finished", "time", False, False, slurm.ENDED, id="finished in the last moment"),
    ],
)
def test_only_slurm_knows_whether_it_comes_back(
    outcome: str | None, again: str, restarted: bool, asked: bool, verdict: str
) -> None:
    assert slurm.what_next(outcome, again, restarted=restarted, asked=asked, why="") == verdict


def test_what_speaks_against_another_start_is_said() -> None:
    why = "3 starts in a row trained nothing"
    assert slurm.what_next("stopped", "preempted", restarted=False, asked=False, why=why) == why


@pytest.mark.parametrize(
    ("said", "preempted"),
    [
        ({"JobState": "RUNNING", "Restarts": "0", "PreemptTime": "2026-11-29T18:12:41"}, True),
        ({"JobState": "COMPLETING", "Restarts": "0", "PreemptTime": "None"}, False),
        ({"JobState": "COMPLETING", "Restarts": "1"}, False),
        ({"JobState": "COMPLETING", "Restarts": "1", "PreemptTime": "2026-11-29T18:12:41"}, False),
        ({}, False),
    ],
)
def test_sigterm_is_a_preemption_only_where_slurm_names_its_time(
    said: dict[str, str], preempted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert slurm.is_preemption(said) is preempted


def test_the_time_of_all_starts_counts() -> None:
    lines = [
        {"event": "begin", "time": 10.0}, {"event": "end", "time": 40.0}, {"event": "begin", "time": 100.0},
        {"event": "begin", "time": 200.0}, {"event": "end", "time": 205.0},
    ]  # fmt: skip
    assert slurm.trained_s(lines) == 35.0

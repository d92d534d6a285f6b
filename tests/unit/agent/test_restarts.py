"""When a training that died starts again: rows of deaths, without a process or a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.contract.answers import Death
from orchestrator.agent.job.restarts import PAUSES_S, decide


def death(from_step: int, step: int) -> Death:
    return {"number": 1, "from_step": from_step, "step": step, "reason": "killed", "at": 0.0, "pause_s": None}


@pytest.mark.parametrize(
    ("deaths", "bound", "pause_s", "why"),
    [
        pytest.param([death(0, 150)], 0, None, "", id="no restart was agreed to"),
        pytest.param([death(0, 150)], 1, PAUSES_S[0], "", id="the first death"),
        pytest.param([death(0, 150), death(100, 250)], 2, PAUSES_S[1], "", id="a later one waits longer"),
        pytest.param([death(0, 150), death(100, 250)], 1, None, "restarts is 1", id="the bound"),
        pytest.param([death(100, 100)], 3, None, "no step since", id="it died before its first step"),
        pytest.param([death(0, 0)], 3, None, "no step since", id="nothing was ever trained"),
        pytest.param(
            [death(100, 150), death(100, 150)], 3, None, "died at step 150 without progress", id="the same step again"
        ),
        pytest.param([death(0, 150), death(100, 150)], 3, None, "died at step 150", id="from a newer checkpoint"),
        pytest.param([death(100, 150), death(100, 151)], 3, PAUSES_S[1], "", id="another step: not the same fault"),
    ],
)
def test_a_death_is_answered_once_for_each_that_was_agreed_to(
    deaths: list[Death], bound: int, pause_s: float | None, why: str
) -> None:
    found, said = decide(deaths, bound)
    assert found == pause_s and why in said


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12), st.integers(0, 5))
def test_never_more_starts_than_the_bound(steps: list[tuple[int, int]], bound: int) -> None:
    deaths: list[Death] = []
    restarts = 0
    for from_step, step in steps:
        deaths.append(death(from_step, step))
        if decide(deaths, bound)[0] is None:
            break
        restarts += 1
    assert restarts <= bound

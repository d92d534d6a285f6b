"""A bill's clock: never behind the wall clock, and never set back within a boot."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.money.counted_time import Reading, counted, read

ORDERED = Reading(wall=1_795_000_000.0, steady_s=5000.0, boot="b-1")


@given(passed_s=st.floats(0, 1e7), set_by_s=st.floats(-1e6, 1e6))
def test_a_clock_that_is_set_back_shortens_no_span(passed_s: float, set_by_s: float) -> None:
    now = Reading(ORDERED.wall + passed_s + set_by_s, ORDERED.steady_s + passed_s, "b-1")
    assert counted(ORDERED, now) - ORDERED.wall == pytest.approx(max(passed_s, passed_s + set_by_s), abs=1e-5)


@given(boot=st.sampled_from(["b-2", ""]), wall=st.floats(1e9, 2e9), steady_s=st.floats(0, 1e7))
def test_across_boots_only_the_wall_clock_tells(boot: str, wall: float, steady_s: float) -> None:
    assert counted(ORDERED, Reading(wall, steady_s, boot)) == wall
    assert counted(Reading(ORDERED.wall, ORDERED.steady_s, boot), Reading(wall, steady_s, "b-1")) == wall
    assert counted(None, Reading(wall, steady_s, "b-1")) == wall


def test_the_steady_clock_of_this_computer_goes_on() -> None:
    first = read(1.0)
    time.sleep(0.01)
    second = read(0.0)
    assert first.boot == second.boot and second.steady_s > first.steady_s

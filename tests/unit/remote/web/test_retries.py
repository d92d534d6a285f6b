"""Repeated requests on a clock that only the test moves."""

from __future__ import annotations

import pytest

from orchestrator.core.errors import NoAnswer, UserError
from orchestrator.remote.web.retries import Again, Patience, repeat


class Clock:
    """Sleeping moves it; so does a call that takes `call_s`."""

    def __init__(self, failures: list[Exception], call_s: float = 0.0) -> None:
        self.now_s, self.slept, self.calls, self.failures, self.call_s = 0.0, list[float](), 0, failures, call_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def call(self) -> int:
        self.calls += 1
        self.now_s += self.call_s
        if self.failures:
            raise self.failures.pop(0)
        return self.calls

    def repeat(self, patience: Patience) -> int:
        return repeat(self.call, patience, sleep=self.sleep, clock=lambda: self.now_s)


def busy(**words: float) -> Again:
    return Again(NoAnswer("busy"), **words)


def test_pauses_double_up_to_the_longest() -> None:
    clock = Clock([busy() for _ in range(6)])
    assert clock.repeat(Patience(within_s=100.0, first_pause_s=0.5, longest_pause_s=8.0)) == 7
    assert clock.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


def test_the_server_may_ask_for_longer_pauses_but_not_for_shorter_ones() -> None:
    clock = Clock([busy(asked_s=3.0), busy(asked_s=0.1), busy(asked_s=900.0)])
    assert clock.repeat(Patience(within_s=100.0, most_asked_s=60.0)) == 4
    assert clock.slept == [3.0, 1.0, 60.0]


@pytest.mark.parametrize("call_s", [0.0, 2.0])
def test_no_try_starts_after_the_end(call_s: float) -> None:
    clock = Clock([busy() for _ in range(99)], call_s)
    with pytest.raises(NoAnswer, match="busy"):
        clock.repeat(Patience(within_s=10.0))
    assert sum(clock.slept) + call_s * (clock.calls - 1) < 10.0


def test_a_pause_beyond_the_end_is_not_slept() -> None:
    clock = Clock([busy(asked_s=3600.0)])
    with pytest.raises(NoAnswer):
        clock.repeat(Patience(within_s=30.0))
    assert (clock.slept, clock.calls) == ([], 1)


def test_a_failure_may_bring_its_own_patience() -> None:
    clock = Clock([busy(asked_s=50.0, within_s=120.0), busy()])
    with pytest.raises(NoAnswer):
        clock.repeat(Patience(within_s=20.0))
    assert clock.slept == [50.0]


def test_tries_may_be_counted() -> None:
    clock = Clock([busy() for _ in range(9)])
    with pytest.raises(NoAnswer):
        clock.repeat(Patience(within_s=float("inf"), most_tries=3))
    assert (clock.calls, clock.slept) == (3, [0.5, 1.0])


def test_what_waiting_does_not_mend_passes_through() -> None:
    clock = Clock([UserError("wrong")])
    with pytest.raises(UserError):
        clock.repeat(Patience(within_s=30.0))
    assert clock.slept == []

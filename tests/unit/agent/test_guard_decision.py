"""Whether a machine lives: each reason to keep or to end it is a row, and no process, file or clock takes part."""

from __future__ import annotations

import pytest

from orchestrator.agent.contract.names import State, StoreState
from orchestrator.agent.guard.needed import MachineFacts, RunFacts, is_done, lease_left_s, left_s

HOUR = 3600.0
STORED = RunFacts(training=State.ENDED, may_end=True)
HELD = RunFacts(training=State.ENDED, unfetched=2, hold_s=HOUR)


def machine(
    *runs: RunFacts, own: float = -1.0, deadline: float | None = 10 * HOUR, attended: bool = False
) -> MachineFacts:
    return MachineFacts(own, deadline, attended, runs)


@pytest.mark.parametrize(
    ("facts", "seconds"),
    [
        pytest.param(machine(), -1, id="nothing asks for it"),
        pytest.param(machine(own=60), 60, id="its own lease: a caller prepares it"),
        pytest.param(machine(own=20 * HOUR), 10 * HOUR, id="no lease goes past the deadline"),
        pytest.param(machine(own=60, deadline=-5), -5, id="the deadline is over"),
        pytest.param(machine(own=60, deadline=None), 60, id="no deadline"),
        pytest.param(machine(RunFacts(lease_left_s=90)), 90, id="the lease of a run without a training"),
        pytest.param(machine(RunFacts(30), RunFacts(90), own=60), 90, id="the longest lease counts"),
        pytest.param(
            machine(RunFacts(90, State.RUNNING, grace_s=300)), 450, id="a training has its grace and a minute"
        ),
        pytest.param(
            machine(RunFacts(-400, State.RUNNING, grace_s=300)), -1, id="a training that did not stop in its grace"
        ),
        pytest.param(machine(HELD), HOUR, id="checkpoints that nobody fetched"),
        pytest.param(machine(HELD._replace(ended_for_s=HOUR - 5)), 5, id="they hold it from the end on"),
        pytest.param(machine(HELD._replace(ended_for_s=2 * HOUR)), 0, id="and no longer than hold_s"),
        pytest.param(machine(HELD._replace(hold_s=None)), 10 * HOUR, id="without hold_s until the deadline"),
        pytest.param(machine(HELD._replace(training=State.LOST)), HOUR, id="a lost training holds them too"),
        pytest.param(machine(HELD._replace(training=State.RUNNING)), 360, id="a running training holds nothing yet"),
        pytest.param(machine(HELD._replace(lease_left_s=2 * HOUR)), 2 * HOUR, id="a lease longer than the hold"),
        pytest.param(machine(HELD._replace(unfetched=0)), 0, id="all of it was fetched"),
        pytest.param(
            machine(HELD._replace(ended_for_s=2 * HOUR, store=StoreState.UPLOADING)), 30, id="an upload is under way"
        ),
        pytest.param(
            machine(HELD._replace(ended_for_s=2 * HOUR, store=StoreState.TROUBLE)), 0, id="an upload that fails"
        ),
        pytest.param(machine(STORED, own=HOUR), 0, id="everything is stored and nobody is here"),
        pytest.param(machine(STORED, own=HOUR, attended=True), HOUR, id="everything is stored and a caller is here"),
        pytest.param(machine(STORED, RunFacts(60, State.RUNNING), own=60), 420, id="another training still runs"),
        pytest.param(
            machine(STORED, RunFacts(lease_left_s=HOUR), own=60), 0, id="a run without training does not count"
        ),
        pytest.param(machine(STORED._replace(unfetched=1, hold_s=90)), 90, id="stored, but not what is kept"),
        pytest.param(machine(STORED._replace(may_end=False), own=60), 60, id="stored, but its order is to hold"),
    ],
)
def test_each_reason_to_live_or_die(facts: MachineFacts, seconds: float) -> None:
    assert left_s(facts) == seconds


@pytest.mark.parametrize(
    ("facts", "seconds"),
    [
        pytest.param(machine(RunFacts(90, State.RUNNING)), 90, id="a training may end at any moment"),
        pytest.param(machine(HELD, own=60), 60, id="a hold ends when the checkpoints are fetched"),
        pytest.param(machine(own=20 * HOUR), 10 * HOUR, id="the deadline"),
        pytest.param(machine(STORED, own=60, attended=True), 0, id="everything is stored: only a caller keeps it"),
    ],
)
def test_before_this_moment_it_certainly_does_not_act(facts: MachineFacts, seconds: float) -> None:
    assert lease_left_s(facts) == seconds


def test_a_machine_without_a_training_is_not_done() -> None:
    assert not is_done(machine()) and not is_done(machine(RunFacts(lease_left_s=-1)))

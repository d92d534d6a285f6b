"""A link that is lost in the middle of a stage: it is done again, within bounds, and only the provider says gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator import pipeline
from orchestrator.core.errors import LinkLost, RemoteError, Unreachable
from orchestrator.core.states import Outcome, State
from orchestrator.stages.context import RunContext
from orchestrator.stages.outcome import lost_link
from tests.support.machines.lying_account import LyingAccount, rented

BEFORE = ("acquire", "provision", "sync", "launch")
STAGES = (*BEFORE, "follow", "fetch", "release")
SILENT_S = 20.0
"""Until a dead link is noticed."""


class Link:
    """A stage's way to its machine: each try is cut until `words` are used up."""

    def __init__(self, account: LyingAccount, words: Sequence[RemoteError], held_s: float = SILENT_S) -> None:
        self.account, self.words, self.held_s, self.tries = account, iter(words), held_s, 0

    def __call__(self, context: RunContext) -> None:
        self.tries += 1
        if (word := next(self.words, None)) is not None:
            self.account.sleep(self.held_s)
            raise word


@pytest.fixture
def account() -> LyingAccount:
    return LyingAccount()


@pytest.fixture
def run(tmp_path: Path, account: LyingAccount, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunContext]:
    with rented(tmp_path, account, monkeypatch) as context:
        context.set_rental_facts(reached=context.now())
        account.show("i-1", status="active")
        context.ledger.set_state(context.run_id, State.PREPARING)
        yield context


def in_stage(context: RunContext, name: str) -> RunContext:
    context.stage = name
    states = {"follow": State.TRAINING, "fetch": State.ENDING, "release": State.ENDING}
    if name in states:
        outcome = Outcome.FINISHED if states[name] is State.ENDING else None
        context.ledger.set_state(context.run_id, State.TRAINING)
        context.ledger.set_state(context.run_id, states[name], outcome=outcome)
    return context


@pytest.mark.parametrize("silent", [False, True], ids=["the cloud answers", "the cloud is silent, too"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_done_again(run: RunContext, account: LyingAccount, stage: str, silent: bool) -> None:
    account.silent = silent
    link = Link(account, [LinkLost("cut"), Unreachable("no answer"), Unreachable("no answer"), LinkLost("cut")])
    lost_link.outlast(in_stage(run, stage), link)
    said = [event.text for event in run.ledger.events(run.run_id) if event.kind == "seen"]
    assert link.tries == 5 and len(said) == 4 and all("reconnecting in" in line for line in said)
    assert run.run.outcome is (Outcome.FINISHED if stage in ("fetch", "release") else None), "silence is no verdict"


@pytest.mark.parametrize("stage", STAGES)
def test_a_machine_that_was_silent_from_the_start_is_said_at_once(
    run: RunContext, account: LyingAccount, stage: str
) -> None:
    link = Link(account, [Unreachable("no answer")])
    if stage == "follow":
        lost_link.outlast(in_stage(run, stage), link)
        return
    with pytest.raises(Unreachable):
        lost_link.outlast(in_stage(run, stage), link)
    assert link.tries == 1


@pytest.mark.parametrize("stage", STAGES)
def test_silence_without_end_is_given_up(run: RunContext, account: LyingAccount, stage: str) -> None:
    began = account.now
    link = Link(account, [LinkLost("cut")] + [Unreachable("no answer")] * 1000)
    with pytest.raises(Unreachable):
        lost_link.outlast(in_stage(run, stage), link)
    most_s = lost_link.TRAINING_GIVE_UP_S if stage == "follow" else lost_link.GIVE_UP_S
    assert most_s < account.now - began < most_s + 3 * (SILENT_S + lost_link.LONGEST_WAIT_S)


def test_a_transfer_that_gets_on_between_its_cuts_is_not_given_up(run: RunContext, account: LyingAccount) -> None:
    link = Link(account, [LinkLost("cut")] * 30, held_s=90.0)
    lost_link.outlast(in_stage(run, "sync"), link)
    assert link.tries == 31


@pytest.mark.parametrize("stage", [*BEFORE, "follow"])
def test_a_machine_that_was_taken_away_is_a_verdict(run: RunContext, account: LyingAccount, stage: str) -> None:
    context = in_stage(run, stage)
    account.end("i-1")
    lost_link.outlast(context, Link(account, [LinkLost("cut")] * 3))
    assert (context.run.state, context.run.outcome) == (State.ENDING, Outcome.PREEMPTED)


def test_what_was_released_elsewhere_is_left(run: RunContext, account: LyingAccount) -> None:
    def force(context: RunContext) -> None:
        context.ledger.set_state(context.run_id, State.ENDING, outcome=Outcome.STOPPED)
        raise LinkLost("cut")

    lost_link.outlast(in_stage(run, "follow"), force)
    assert run.run.outcome is Outcome.STOPPED


def test_the_walk_outlasts_what_each_stage_loses(
    run: RunContext, account: LyingAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {stage.name: Link(account, [LinkLost("cut")]) for stage in pipeline.STAGES}

    def lossy(context: RunContext) -> None:
        links[str(context.stage)](context)
        if context.stage == "follow":
            in_stage(context, "fetch")

    monkeypatch.setattr(pipeline, "STAGES", [stage._replace(run=lossy) for stage in pipeline.STAGES])
    pipeline.walk(run)
    assert {name: link.tries for name, link in links.items()} == dict.fromkeys(links, 2)
    assert run.run.outcome is Outcome.FINISHED


@pytest.mark.parametrize("state", [State.PREPARING, State.TRAINING])
def test_ctrl_c_leaves_and_changes_nothing(run: RunContext, monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    """A training goes on without gptctl, exit 0; a machine on which nothing trains yet may bill, exit 7."""

    def leave(context: RunContext) -> None:
        raise KeyboardInterrupt

    run.ledger.set_state(run.run_id, state)
    monkeypatch.setattr(pipeline, "STAGES", [stage._replace(run=leave) for stage in pipeline.STAGES])
    monkeypatch.setattr(pipeline, "open_context", lambda *_: run)
    assert pipeline.drive(run.home, run.run_id, run.listener) == (0 if state is State.TRAINING else 7)
    assert run.run.state is state and run.run.outcome is None
    (left,) = [event for event in run.ledger.events(run.run_id) if event.kind == "detached"]
    assert left.text == ("the training continues" if state is State.TRAINING else "nothing trains yet")

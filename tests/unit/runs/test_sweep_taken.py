"""A machine of a sweep is taken away: its runs go on together on another one, under what is left of their ceiling."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.sweeps.show import show as show_sweep
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.errors import ProviderError, RunLocked
from orchestrator.core.facts.run_facts import QueueFacts, Recovery, ResumeFrom
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_RELEASED, Attempt, RunRecord
from orchestrator.ledger.sweeps import Sweep, SweepTerms
from orchestrator.runs import sweeps as runs_of_sweeps
from orchestrator.runs.new_run import RunRequest
from orchestrator.runs.sweep_revival import revive_taken, revive_unbought
from orchestrator.runs.sweeps import new_sweep
from orchestrator.stages.context import RunContext
from orchestrator.stages.outcome import next_attempt

MACHINE = machine_type("8xA100-40GB")
HOST = HostSpec(name="cloud", provider="lambda", machine=MACHINE.name)
RECIPE = load_recipe("quickstart")
ARMS = ("base", "wide", "deep", "done")


def show(run: RunRecord) -> contextlib.nullcontext[object]:
    return contextlib.nullcontext(lambda event: None)


class Place:
    """A sweep of four arms on one machine for $20: one is finished, one trains, two wait; then the machine is taken."""

    def __init__(self, ledger: Ledger, recovery: Recovery | None) -> None:
        self.ledger, now = ledger, time.time()
        plan = make_plan(RECIPE, HOST, MACHINE, None, now=now)
        requests = [
            (RunRequest(RECIPE, HOST, MACHINE, plan, labels={"sweep": "s", "arm": arm, "seed": "1"}, recovery=recovery,
                        queue=QueueFacts()), 0) for arm in ARMS
        ]  # fmt: skip
        self.sweep: Sweep = new_sweep(
            ledger, "s", SweepTerms(baseline="base", ceiling_usd=20.0), requests, ceilings_usd=[20.0], now=now
        )
        self.old = str(self.runs()["base"].rental_id)
        ledger.update_rental(self.old, instance_id="i-1", facts={"reached": now})
        for number, run in enumerate(self.runs().values()):
            ledger.add_attempt(Attempt(run.id, 1, self.old, now))
            began = run.labels["arm"] in ("base", "done")
            queue = replace(run.facts.queue or QueueFacts(), has_started=began, ahead=None if began else number)
            ledger.update_run(run.id, step=700 if began else 0, facts={"queue": queue})
        ledger.close_stage(ledger.open_stage(self.runs()["base"].id, self.old, "follow", 15.92), now + 1800)
        for arm, run in self.runs().items():
            self.end(run.id, Outcome.FINISHED if arm == "done" else Outcome.PREEMPTED)
        ledger.update_rental(self.old, state=RENTAL_RELEASED)

    def runs(self) -> dict[str, RunRecord]:
        return {run.labels["arm"]: run for run in sweeps.runs_of(self.ledger.rows, self.sweep.id)}

    def add(self, arm: str, *, ends: bool = True) -> None:
        """One that was never in the queue of the machine, which is gone."""
        base = self.runs()["base"]
        run = replace(
            base, id=f"{arm}-1", labels={**base.labels, "arm": arm}, state=State.PLANNED, outcome=None, step=0,
            rental_id=self.old, ended_at=None,
        )  # fmt: skip
        self.ledger.add_run(run)
        if ends:
            self.end(run.id, Outcome.PREEMPTED)

    def end(self, run_id: str, outcome: Outcome) -> None:
        self.ledger.set_state(run_id, State.ENDING, outcome=outcome, cause="lambda took i-1 away")
        self.ledger.set_state(run_id, State.ENDED)


@pytest.fixture(params=[Recovery(most=2), None])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    def newest(context: RunContext) -> ResumeFrom | None:
        arm = context.run.labels["arm"]
        return ResumeFrom(f"s3://b/{arm}/step-000600", 600, {}) if arm == "base" else None

    monkeypatch.setattr(next_attempt.continue_from, "newest", newest)
    with Ledger.open(tmp_path / "home", time.time) as ledger:
        yield Place(ledger, request.param)


def test_those_that_trained_and_those_that_waited_share_the_next_machine(place: Place) -> None:
    (fresh,) = revive_taken(place.ledger.home, place.sweep.id, show)
    runs = place.runs()
    assert {arm for arm, run in runs.items() if run.rental_id == fresh} == {"base", "wide", "deep"}
    assert {run.state for arm, run in runs.items() if arm != "done"} == {State.PLANNED}
    assert (runs["done"].state, runs["done"].rental_id) == (State.ENDED, place.old)
    assert place.ledger.rental(fresh).facts.ceiling_usd == pytest.approx(20.0 - 15.92 / 2, abs=0.01)
    assert (runs["base"].facts.resume_from or ResumeFrom("")).step == 600 and runs["base"].step == 600
    counted = {arm: run.facts.recovery and run.facts.recovery.interruptions for arm, run in runs.items()}
    assert (counted["base"], counted["wide"], counted["deep"]) == (1, 0, 0), "who only waited lost nothing"
    assert runs["base"].facts.recovery is not None and runs["base"].facts.recovery.lost_steps == 100
    assert all(run.facts.queue and not run.facts.queue.has_started for arm, run in runs.items() if arm != "done")
    assert revive_taken(place.ledger.home, place.sweep.id, show) == [], "twice starts nothing twice"
    assert len(place.ledger.rentals()) == 2


def test_by_itself_only_what_was_agreed_to_goes_on(place: Place) -> None:
    agreed = place.runs()["base"].facts.recovery is not None
    assert bool(revive_taken(place.ledger.home, place.sweep.id, show, by_itself=True)) is agreed


def test_what_spent_the_ceiling_or_is_still_held_stays(place: Place) -> None:
    place.ledger.update_rental(place.old, state="open")
    assert revive_taken(place.ledger.home, place.sweep.id, show) == []
    place.ledger.update_rental(place.old, state=RENTAL_RELEASED, facts={"ceiling_usd": 7.0})
    assert revive_taken(place.ledger.home, place.sweep.id, show) == []
    assert {run.state for run in place.runs().values()} == {State.ENDED} and len(place.ledger.rentals()) == 1


def test_five_machines_in_a_row_under_one_ceiling(place: Place) -> None:
    """However often it is taken, what all machines cost stays below the ceiling, and it ends."""
    ceilings = []
    while fresh := revive_taken(place.ledger.home, place.sweep.id, show):
        (rental,) = fresh
        ceilings.append(place.ledger.rental(rental).facts.ceiling_usd or 0.0)
        base, now = place.runs()["base"], time.time()
        place.ledger.update_rental(rental, facts={"reached": now})
        half_s = ceilings[-1] / 2 / 15.92 * 3600
        place.ledger.close_stage(place.ledger.open_stage(base.id, rental, "follow", 15.92), now + half_s)
        for run in place.runs().values():
            if run.state is State.PLANNED:
                place.ledger.add_attempt(Attempt(run.id, 2 + len(ceilings), rental, now))
                place.end(run.id, Outcome.PREEMPTED)
        place.ledger.update_rental(rental, state=RENTAL_RELEASED)
        assert len(ceilings) < 9
    assert ceilings == sorted(ceilings, reverse=True) and all(0 < each < 20 for each in ceilings)
    assert runs_of_sweeps.spent_usd(place.ledger, place.sweep) < 20.0


def test_machines_that_are_taken_at_once_are_not_bought_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing trains, nothing is spent that could end it: three machines in a row, then it stops."""
    drives: list[str] = []

    def drive(home: Path, run_id: str, listener: object, *, until: str | None = None) -> int:
        run = place.ledger.run(run_id)
        drives.append(str(run.rental_id))
        place.ledger.update_rental(str(run.rental_id), facts={"reached": time.time()})
        if until is None:
            place.ledger.add_attempt(Attempt(run_id, 100 + len(drives), str(run.rental_id), time.time()))
            place.end(run_id, Outcome.PREEMPTED)
            place.ledger.update_rental(str(run.rental_id), state=RENTAL_RELEASED)
            return 3
        place.ledger.set_state(run_id, State.TRAINING)
        return 0

    monkeypatch.setattr(runs_of_sweeps, "drive", drive)
    code = runs_of_sweeps.drive_sweep(place.ledger.home, place.sweep.id, show, detach=False)
    assert code == 3 and len(set(drives)) <= 4


def test_killed_between_two_runs_the_rest_goes_on_beside_the_first(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was lost, and no second machine for the same dollars is agreed to."""
    begin, begun = next_attempt.attempts.begin, list[str]()

    def killed(*args: object, **keywords: object) -> None:
        if len(begun) == 1:
            raise KeyboardInterrupt
        begun.append("one")
        begin(*args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(next_attempt.attempts, "begin", killed)
    with pytest.raises(KeyboardInterrupt):
        revive_taken(place.ledger.home, place.sweep.id, show)
    monkeypatch.setattr(next_attempt.attempts, "begin", begin)
    (there,) = revive_taken(place.ledger.home, place.sweep.id, show)
    assert {run.rental_id for arm, run in place.runs().items() if arm != "done"} == {there}
    assert len(place.ledger.rentals()) == 2


def test_what_was_not_yet_in_the_queue_goes_on_on_the_same_machine(place: Place) -> None:
    """Taken away while arms were still being queued: these have no attempt, and share the one new machine."""
    place.add("late")
    (late,) = revive_unbought(place.ledger, place.sweep.id, time.time())
    (there,) = revive_taken(place.ledger.home, place.sweep.id, show)
    assert late.rental_id == there and place.ledger.rental(there).facts.replaces == place.old
    assert len(place.ledger.rentals()) == 2


def test_a_machine_that_cannot_be_had_is_no_interruption(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sold out after a preemption: the sweep stops at the first arm and says how to go on; nothing is counted, and
    however often it is tried, all arms meet on one machine as soon as there is one."""
    by_itself = place.runs()["base"].facts.recovery is not None
    sold_out = list[str]()

    def drive(home: Path, run_id: str, listener: object, *, until: str | None = None) -> int:
        sold_out.append(run_id)
        place.ledger.set_state(run_id, State.ENDING, outcome=Outcome.PREEMPTED, cause="no capacity")
        place.ledger.set_state(run_id, State.ENDED)
        return 3

    monkeypatch.setattr(runs_of_sweeps, "drive", drive)
    for _ in range(4):
        with pytest.raises(ProviderError, match="no capacity") as refused:
            runs_of_sweeps.drive_sweep(place.ledger.home, place.sweep.id, show, detach=False)
        assert refused.value.hint == "gptctl sweep resume s"
    assert len(sold_out) == 4 and len(place.ledger.rentals()) == 2
    (there,) = revive_taken(place.ledger.home, place.sweep.id, show)
    runs = place.runs()
    assert {run.rental_id for arm, run in runs.items() if arm != "done"} == {there}
    recovery = runs["base"].facts.recovery
    assert recovery is not None and (recovery.interruptions, recovery.fruitless) == (1, 0)
    assert recovery.lost_steps == 100 and recovery.most == (2 if by_itself else 5)


def test_the_status_lists_every_machine_and_the_money_is_their_sum(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    show_sweep(place.ledger, place.sweep, as_json=False)
    assert "gptctl sweep resume s: 3 runs go on on another machine" in "".join(capsys.readouterr())
    (fresh,) = revive_taken(place.ledger.home, place.sweep.id, show)
    now, ledger = time.time(), place.ledger
    ledger.close_stage(ledger.open_stage(place.runs()["wide"].id, fresh, "follow", 7.0), now + 3600)
    show_sweep(ledger, place.sweep, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [(each["id"], each["state"]) for each in found["machines"]] == [(place.old, "released"), (fresh, "open")]
    assert [each["cost_usd"] for each in found["machines"]] == pytest.approx([15.92 / 2, 7.0], abs=0.01)
    assert found["spent_usd"] == pytest.approx(sum(each["cost_usd"] for each in found["machines"]))
    assert found["spent_usd"] == pytest.approx(sum(each["cost_usd"] for each in found["arms"]))
    show_sweep(ledger, place.sweep, as_json=False)
    said = capsys.readouterr()
    assert f"machine {place.old} (released): $7.96 of $20.00" in said.out + said.err


def test_an_arm_that_is_added_meanwhile_is_followed_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the gptctl that follows the others: once the one that added it has put it into the queue and let go of it."""
    revive_taken(place.ledger.home, place.sweep.id, show)
    locked, followed = [True, True], list[str]()

    def drive(home: Path, run_id: str, listener: object, *, until: str | None = None) -> int:
        if until is not None:
            place.ledger.set_state(run_id, State.TRAINING)
            return 0
        if run_id == "late-1" and locked:
            locked.pop()
            raise RunLocked("late-1 is driven by pid 7")
        followed.append(run_id)
        place.ledger.set_state(run_id, State.ENDING, outcome=Outcome.FINISHED)
        place.ledger.set_state(run_id, State.ENDED)
        if len(followed) == 1:
            place.add("late", ends=False)
        return 0

    monkeypatch.setattr(runs_of_sweeps, "drive", drive)
    monkeypatch.setattr(runs_of_sweeps.time, "sleep", lambda seconds: None)
    assert runs_of_sweeps.drive_sweep(place.ledger.home, place.sweep.id, show, detach=False) == 0
    assert followed[-1] == "late-1" and len(followed) == 4 and not locked


def test_who_leaves_while_arms_are_queued_begins_no_other(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    revive_taken(place.ledger.home, place.sweep.id, show)
    driven = list[str]()

    def drive(home: Path, run_id: str, listener: object, *, until: str | None = None) -> int:
        driven.append(run_id)
        place.ledger.set_state(run_id, State.ACQUIRING)  # Ctrl-C: drive() leaves in order and says what it costs
        return 7

    monkeypatch.setattr(runs_of_sweeps, "drive", drive)
    assert runs_of_sweeps.drive_sweep(place.ledger.home, place.sweep.id, show, detach=False) == 7
    assert len(driven) == 1

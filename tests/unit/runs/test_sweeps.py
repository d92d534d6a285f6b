"""A sweep in the ledger: written together; what found no machine is tried again on one, under one ceiling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.sweeps.sweep import cost_of_adding
from orchestrator.core.config.home_box import HomeBox
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.errors import LimitReached, StillBilling, UserError
from orchestrator.core.events import Listener
from orchestrator.core.facts.origin import Origin
from orchestrator.core.facts.run_facts import QueueFacts, Recovery, ResumeFrom
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_RELEASED
from orchestrator.ledger.sweeps import Sweep, SweepTerms
from orchestrator.runs import sweeps as runs_of_sweeps
from orchestrator.runs.new_run import RunRequest, as_requested, record_of
from orchestrator.runs.sweep_revival import current, revive_unbought
from orchestrator.runs.sweeps import add_arms, new_sweep, stop_runs

NOW = 1_000_000.0
RECIPE, MACHINE = load_recipe("quickstart"), machine_type("2xCPU")
HOST = HostSpec(name="box", provider="ssh", machine="2xCPU", address="box")
PLAN = make_plan(RECIPE, HOST, MACHINE, None, now=NOW)
PLACE = HOST.reach()


def request(arm: str, seed: int) -> RunRequest:
    labels = {"sweep": "mine", "arm": arm, "seed": str(seed)}
    return RunRequest(RECIPE, HOST, MACHINE, PLAN, labels=labels, queue=QueueFacts())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "home", lambda: NOW) as opened:
        yield opened


@pytest.fixture
def sweep(ledger: Ledger) -> Sweep:
    terms = SweepTerms(baseline="base", ceiling_usd=90.0, stop_step=100, stop_margin=0.2)
    requests = [(request(arm, seed), number % 2) for number, (arm, seed) in enumerate(
        [("base", 1), ("wide", 1), ("base", 2), ("wide", 2)])]  # fmt: skip
    return new_sweep(ledger, "mine", terms, requests, ceilings_usd=[50.0, 40.0], now=NOW)


def test_each_run_knows_its_sweep_its_machine_and_the_baseline_of_its_seed(ledger: Ledger, sweep: Sweep) -> None:
    runs = sweeps.runs_of(ledger.rows, sweep.id)
    assert [(run.labels["arm"], run.labels["seed"]) for run in runs] == [
        ("base", "1"), ("wide", "1"), ("base", "2"), ("wide", "2"),
    ]  # fmt: skip
    assert sweeps.find(ledger.rows, "mine") == sweep and {run.state for run in runs} == {State.PLANNED}
    stops = [run.facts.queue and run.facts.queue.stop and run.facts.queue.stop.baseline for run in runs]
    assert stops == [None, runs[0].id, None, runs[2].id]
    ceilings = {ledger.rental(run.rental_id or "").facts.ceiling_usd for run in runs}
    assert ceilings == {50.0, 40.0}


def end(ledger: Ledger, run_id: str, outcome: Outcome) -> None:
    ledger.set_state(run_id, State.ENDING, outcome=outcome, cause="no capacity")
    ledger.set_state(run_id, State.ENDED)


def test_runs_of_a_machine_that_is_gone_share_one_new_one_and_what_the_old_one_left(
    ledger: Ledger, sweep: Sweep
) -> None:
    runs = sweeps.runs_of(ledger.rows, sweep.id)
    gone = runs[0].rental_id or ""
    for run in (runs[0], runs[2]):
        end(ledger, run.id, Outcome.PREEMPTED)
    end(ledger, runs[1].id, Outcome.FAILED)
    interval = ledger.open_stage(runs[0].id, gone, "acquire", 7200.0)
    ledger.close_stage(interval, NOW + 10)  # 20 dollars
    ledger.update_rental(gone, state=RENTAL_RELEASED)
    again = revive_unbought(ledger, sweep.id, NOW)
    assert [(run.labels["arm"], run.labels["seed"]) for run in again] == [("base", "1"), ("base", "2")]
    (rental_id,) = {run.rental_id for run in again}
    assert rental_id != gone and ledger.rental(rental_id or "").facts.ceiling_usd == pytest.approx(30.0)
    queue = ledger.run(runs[1].id).facts.queue
    assert queue is not None and queue.stop is not None and queue.stop.baseline == runs[0].id
    assert revive_unbought(ledger, sweep.id, NOW) == []
    assert len(current(sweeps.runs_of(ledger.rows, sweep.id))) == 4


def test_a_machine_that_spent_its_ceiling_is_not_replaced(ledger: Ledger, sweep: Sweep) -> None:
    runs = sweeps.runs_of(ledger.rows, sweep.id)
    gone = runs[0].rental_id or ""
    end(ledger, runs[0].id, Outcome.PREEMPTED)
    interval = ledger.open_stage(runs[0].id, gone, "acquire", 3600.0)
    ledger.close_stage(interval, NOW + 50)
    ledger.update_rental(gone, state=RENTAL_RELEASED)
    assert revive_unbought(ledger, sweep.id, NOW) == []


def test_of_two_that_add_one_arm_at_the_same_time_one_is_refused_whole(ledger: Ledger, sweep: Sweep) -> None:
    with Ledger.open(ledger.home, lambda: NOW) as other:
        add_arms(other, sweep, [request("late", 1), request("late", 2)], NOW)
        before = (sweeps.runs_of(ledger.rows, sweep.id), ledger.rentals())
        with pytest.raises(UserError, match="at the same time") as refused:
            add_arms(ledger, sweep, [request("new", 1), request("late", 2)], NOW)
        assert refused.value.hint == "gptctl sweep status mine"
        assert (sweeps.runs_of(ledger.rows, sweep.id), ledger.rentals()) == before


def test_an_added_arm_waits_on_the_machine_with_the_fewest_left(ledger: Ledger, sweep: Sweep) -> None:
    runs = sweeps.runs_of(ledger.rows, sweep.id)
    end(ledger, runs[0].id, Outcome.FINISHED)
    added = add_arms(ledger, sweep, [replace(request("late", 1)), request("late", 2)], NOW)
    assert {run.rental_id for run in added} == {runs[0].rental_id}
    assert {run.facts.queue and run.facts.queue.group for run in added} == {sweep.id}


def test_an_added_arm_tells_its_cost_and_what_is_left_before_anything_is_rented(ledger: Ledger, sweep: Sweep) -> None:
    paid = replace(PLAN, paid=True, cost_usd=replace(PLAN.cost_usd, total=12.0))
    assert cost_of_adding(ledger, sweep, paid, 2) == (
        "Add 2 runs of quickstart? That costs about $24.00; $90.00 of the ceiling is left."
    )
    for rental_id in {run.rental_id for run in sweeps.runs_of(ledger.rows, sweep.id)}:
        ledger.update_rental(rental_id or "", state=RENTAL_RELEASED)
    assert "rents another machine" in cost_of_adding(ledger, sweep, paid, 2)
    run = sweeps.runs_of(ledger.rows, sweep.id)[0]
    interval = ledger.open_stage(run.id, run.rental_id or "", "acquire", 3600.0)
    ledger.close_stage(interval, NOW + 90)
    with pytest.raises(LimitReached, match=r"has spent its ceiling of \$90.00"):
        cost_of_adding(ledger, sweep, paid, 1)


def test_an_arm_that_gets_another_machine_keeps_its_baseline(ledger: Ledger, sweep: Sweep) -> None:
    runs = sweeps.runs_of(ledger.rows, sweep.id)
    for run in runs[:2]:
        end(ledger, run.id, Outcome.NEVER_STARTED)
    base, wide = revive_unbought(ledger, sweep.id, NOW)
    assert wide.facts.queue is not None and wide.facts.queue.stop is not None
    assert wide.facts.queue.stop.baseline == base.id != runs[0].id


def test_an_added_arm_ends_early_too_beside_the_baseline_of_its_seed(ledger: Ledger, sweep: Sweep) -> None:
    base = {run.labels["seed"]: run for run in sweeps.runs_of(ledger.rows, sweep.id) if run.labels["arm"] == "base"}
    end(ledger, base["1"].id, Outcome.FINISHED)
    for run in add_arms(ledger, sweep, [request("late", 1), request("late", 2)], NOW):
        known = base[run.labels["seed"]]
        assert run.facts.queue is not None and run.facts.queue.stop is not None
        assert (run.facts.queue.stop.baseline, run.rental_id) == (known.id, known.rental_id)


def test_of_two_that_rent_for_one_sweep_at_the_same_time_one_is_refused(ledger: Ledger, sweep: Sweep) -> None:
    for rental_id in {run.rental_id for run in sweeps.runs_of(ledger.rows, sweep.id)}:
        ledger.update_rental(rental_id or "", state=RENTAL_RELEASED)
    with Ledger.open(ledger.home, lambda: NOW) as other, pytest.MonkeyPatch.context() as here:
        add_arms(other, sweep, [request("late", 1)], NOW)
        here.setattr("orchestrator.runs.sweeps.held_rentals", lambda *_: [])  # it looked before
        with pytest.raises(UserError, match="rents a machine"):
            add_arms(ledger, sweep, [request("new", 1)], NOW)
    assert len(ledger.rentals(open_only=True)) == 1


@pytest.mark.parametrize("silent", ["base", "wide"])
def test_a_machine_that_does_not_answer_keeps_no_other_one_training(
    ledger: Ledger, sweep: Sweep, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    runs, asked, said = sweeps.runs_of(ledger.rows, sweep.id), list[str](), list[str]()

    def stop_run(home: Path, run_id: str, listener: Listener) -> int:
        asked.append(run_id)
        if ledger.run(run_id).labels["arm"] == silent:
            raise StillBilling(f"{run_id} does not answer", f"gptctl release {run_id} --force")
        end(ledger, run_id, Outcome.STOPPED)
        return 0

    monkeypatch.setattr(runs_of_sweeps, "stop_run", stop_run)
    with pytest.raises(StillBilling) as raised:
        stop_runs(ledger.home, runs, lambda run: nullcontext(lambda event: said.append(event.text)))
    first, second = [run_id for run_id in asked if ledger.run(run_id).labels["arm"] == silent]
    assert sorted(asked) == sorted(run.id for run in runs) and raised.value.message == f"{first} does not answer"
    assert said == [f"{each} does not answer. Next: gptctl release {each} --force" for each in (first, second)]


def test_a_run_that_begins_again_was_asked_for_in_the_same_words() -> None:
    """Whatever a request writes: a field that is new there must not be lost here."""
    asked = replace(
        request("wide", 1), wait=True, accept_new_host_key=True, resume_from=ResumeFrom("/a", 1, {}),
        init_from=ResumeFrom("/b", 2, {}), origin=Origin("resumed", "/a"), home_boxes=(HomeBox("nas", PLACE, ""),),
        alternatives=(PLAN,), recovery=Recovery(5),
    )  # fmt: skip
    written = record_of(asked, "r-1", NOW).facts
    assert as_requested(written) == written
    assert as_requested(replace(written, deaths=3, abandon=True)) == written

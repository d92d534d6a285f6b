"""The ledger's records, searches and promises, on a real SQLite file."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.errors import UserError
from orchestrator.core.estimate import Estimate
from orchestrator.core.events import Event
from orchestrator.core.facts.rental_facts import GivenBack, RentalFacts
from orchestrator.core.facts.run_facts import Prepared, RunFacts
from orchestrator.core.machines import machine_type
from orchestrator.core.money.billing import MachineLife, SettledBill
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.ports import Address
from orchestrator.core.states import ORDER, Outcome, Seen, State
from orchestrator.ledger import Attempt, Intent, Ledger, RateRecord, Rental, RunRecord, new_rental_id, new_run_id
from orchestrator.ledger.identity import PATTERN
from orchestrator.ledger.records import IntentAnswer, IntentRequest

PLAN = make_plan(load_recipe("quickstart"), None, machine_type("2xCPU"), None, now=0.0)
HOSTILE = 'a\'; DROP TABLE runs; --\n$(rm -rf) "é" 漢'


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "home", clock) as opened:
        opened.add_rental(Rental("box-1", "ssh", "box", "1x3090", clock(), price_per_hour_usd=0.5))
        yield opened


def a_run(run_id: str = "quickstart-1120-aaaaaa", at: float = 1_000_000.0, **fields: object) -> RunRecord:
    return RunRecord(run_id, "quickstart", "box", "1x3090", at, rental_id="box-1", **fields)  # type: ignore[arg-type]


def test_records_come_back_as_they_were(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    run = a_run(
        name=HOSTILE, note=HOSTILE, labels={"k": HOSTILE}, plan=PLAN,
        facts=RunFacts(wait=True, prepared=Prepared("/py", "2.9.1", gpus=("u1",))),
        keep=True, seen=Seen.UNKNOWN, seen_at=3.0, safe_step=10, loss=2.25, eta_s=12.5,
    )  # fmt: skip
    facts = RentalFacts(reached=3.0, life=MachineLife(active_at=2.0), given_back=(GivenBack("i-0"),))
    rental = Rental("box-2", "lambda", "cloud", "8xH100", 2.0, "i-1", 31.92, address=Address("h", 22), facts=facts)
    ledger.add_run(run)
    ledger.add_rental(rental)
    ledger.close()
    with Ledger.open(tmp_path / "home", clock) as again:
        assert again.run(run.id) == run
        assert again.rental("box-2") == rental
        assert [item.id for item in again.rentals()] == ["box-1", "box-2"]


def test_events_are_kept_in_order_and_the_ephemeral_forgotten(ledger: Ledger) -> None:
    run = a_run()
    ledger.add_run(run)
    told = [Event("stage_started", 5.0, "sync", HOSTILE, {"bytes": 3}), Event("warning", 4.0)]
    for event in (told[0], Event("progress", 4.5, "sync"), Event("metric", 4.6), Event("log", 4.7), told[1]):
        ledger.tell(run.id, event)
    assert ledger.events(run.id) == told


def test_find_run_by_newest_id_prefix_and_name(ledger: Ledger) -> None:
    with pytest.raises(UserError, match="no runs yet") as nothing:
        ledger.find_run()
    assert "gptctl run" in nothing.value.hint
    for at, (run_id, name) in enumerate([("tiny-1120-aaaaaa", "first"), ("tiny-1120-aaabbb", None), ("zoo-1", "dup")]):
        ledger.add_run(a_run(run_id, float(at), name=name))
    ledger.add_run(a_run("zoo-11", 0.5, name="dup"))
    assert ledger.find_run().id == "zoo-1"
    assert ledger.find_run("tiny-1120-aaab").id == "tiny-1120-aaabbb"
    assert ledger.find_run("first").id == "tiny-1120-aaaaaa"
    assert ledger.find_run("zoo-1").id == "zoo-1", "a whole id wins over being a prefix of another"
    with pytest.raises(UserError, match="matches 2 runs") as two:
        ledger.find_run("tiny")
    assert all(run.id in two.value.message for run in ledger.runs() if run.id.startswith("tiny"))
    for absent in ("%", "_iny", "TINY-1120-aaaaaa", HOSTILE, "tiny-1120-aaaaaaa"):
        with pytest.raises(UserError, match="no run matches") as none:
            ledger.find_run(absent)
        assert "gptctl status" in none.value.hint


def test_a_name_that_repeats_means_the_newest_run_and_that_is_said(tmp_path: Path, clock: Clock) -> None:
    said: list[str] = []
    with Ledger.open(tmp_path / "other", clock, said.append) as ledger:
        for at, run_id in enumerate(("one-1", "two-1", "dup-1")):
            ledger.add_run(RunRecord(run_id, "tiny", "local", "2xCPU", float(at), name=None if at == 2 else "dup"))
        assert ledger.find_run("one-1").id == "one-1" and said == []
        assert ledger.find_run("dup").id == "two-1", "a whole name wins over the beginning of an id"
        assert said == ["2 runs are named 'dup'; this is the newest, two-1"]


def test_what_is_forgotten_is_in_no_list_and_its_cost_stays(tmp_path: Path, clock: Clock) -> None:
    with Ledger.open(tmp_path / "other", clock) as ledger:
        ledger.add_run(RunRecord("one-1", "tiny", "local", "2xCPU", 1.0, name="mine"))
        ledger.update_run("one-1", facts={"forgotten_at": 2.0})
        assert ledger.runs() == [] and ledger.count_runs() == 0
        for wanted in (None, "one-1", "mine"):
            with pytest.raises(UserError):
                ledger.find_run(wanted)
        assert [run.id for run in ledger.runs(forgotten=True)] == ["one-1"]
        assert [each.id for each in ledger.spent_by_run()] == ["one-1"]


def test_runs_are_filtered_and_newest_first(ledger: Ledger) -> None:
    for number in range(5):
        ledger.add_run(a_run(f"run-{number}", float(number % 3)))
    ledger.add_run(RunRecord("elsewhere", "quickstart", "local", "2xCPU", 9.0))
    ledger.set_state("run-3", State.ENDED, outcome=Outcome.STOPPED)
    assert [run.id for run in ledger.runs()] == ["elsewhere", "run-2", "run-4", "run-1", "run-3", "run-0"]
    assert [run.id for run in ledger.runs(limit=2)] == ["elsewhere", "run-2"]
    assert [run.id for run in ledger.runs(unfinished_only=True, rental_id="box-1")] == [
        "run-2", "run-4", "run-1", "run-0",
    ]  # fmt: skip
    assert [run.id for run in ledger.runs(host="local")] == ["elsewhere"]


def test_set_state_writes_outcome_time_and_event_together(ledger: Ledger, clock: Clock) -> None:
    run = a_run()
    ledger.add_run(run)
    clock.time = 2e6
    assert ledger.set_state(run.id, State.TRAINING).started_at == 2e6
    with pytest.raises(ValueError, match="needs outcome"):
        ledger.set_state(run.id, State.ENDING)
    ending = ledger.set_state(run.id, State.ENDING, outcome=Outcome.FAILED, cause="loss is NaN", cause_code=5)
    assert (ending.outcome, ending.cause, ending.cause_code, ending.ended_at) == (
        Outcome.FAILED, "loss is NaN", 5, None,
    )  # fmt: skip
    clock.time = 3e6
    ended = ledger.set_state(run.id, State.ENDED, outcome=Outcome.FINISHED, cause="other")
    assert (ended.outcome, ended.cause, ended.ended_at) == (Outcome.FAILED, "loss is NaN", 3e6)
    assert [event.data["to"] for event in ledger.events(run.id)] == ["training", "ending", "ended"]
    ledger.set_state(run.id, State.ENDED)
    assert len(ledger.events(run.id)) == 3, "the same state again is no event"
    with pytest.raises(ValueError, match="only forward"):
        ledger.set_state(run.id, State.TRAINING)


STEPS = st.lists(st.tuples(st.sampled_from(State), st.none() | st.sampled_from(Outcome)), max_size=12)


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_states_go_only_forward_and_the_first_outcome_stays(steps: list[tuple[State, Outcome | None]]) -> None:
    with tempfile.TemporaryDirectory() as home, Ledger.open(Path(home) / "home", Clock()) as ledger:
        before = RunRecord("r", "quickstart", "local", "2xCPU", 1.0)
        ledger.add_run(before)
        for state, outcome in steps:
            try:
                after = ledger.set_state("r", state, outcome=outcome)
            except ValueError:
                after = ledger.run("r")
                assert after == before, "a refused step changes nothing"
            assert ORDER.index(after.state) >= ORDER.index(before.state)
            assert before.outcome in (None, after.outcome)
            assert (after.outcome is not None) == (after.state in (State.ENDING, State.ENDED))
            before = after
        told = [event.data["to"] for event in ledger.events("r")]
        assert (told[-1] if told else "planned") == before.state


def test_update_run_takes_plain_fields_only(ledger: Ledger) -> None:
    run = a_run()
    ledger.add_run(run)
    ledger.update_run(run.id, step=7, loss=1.5, seen=Seen.LIVE, plan=PLAN, keep=True)
    after = ledger.run(run.id)
    assert (after.step, after.loss, after.seen, after.plan, after.keep) == (7, 1.5, Seen.LIVE, PLAN, True)
    for fields in ({"state": "ended"}, {"outcome": "finished"}, {"id": "x"}, {"no_such": 1}, {"step; --": 1}, {}):
        with pytest.raises(TypeError, match="cannot update"):
            ledger.update_run(run.id, **fields)
    with pytest.raises(UserError, match="no run matches 'ghost'"):
        ledger.update_run("ghost", step=1)
    assert ledger.run(run.id) == after


def test_stage_intervals_and_what_they_cost(ledger: Ledger, clock: Clock) -> None:
    run = a_run()
    ledger.add_run(run)
    sync = ledger.open_stage(run.id, "box-1", "sync", 36.0)
    clock.time += 10
    ledger.close_stage(sync)
    clock.time += 5
    ledger.close_stage(sync)  # again: the first end stays
    follow = ledger.open_stage(run.id, "box-1", "follow", 36.0)
    ledger.touch_stage(follow, clock() + 100)
    ledger.touch_stage(follow, clock() + 50)  # a late message never moves it back
    clock.time += 1000  # the driver was killed; the next one opens its stage
    ledger.open_stage(run.id, "box-1", "fetch", 36.0)
    first, second, third = ledger.intervals(run.id)
    assert (first.stage, first.ended_at) == ("sync", 1_000_010.0)
    assert (second.stage, second.ended_at) == ("follow", 1_000_115.0), "closed where it was last heard of"
    assert (third.stage, third.ended_at, third.last_at) == ("fetch", None, 1_001_015.0)
    assert ledger.spend_since(0) == pytest.approx(110 * 0.01)
    assert ledger.spend_since(1_000_065) == pytest.approx(50 * 0.01), "clipped at the moment asked for"
    ledger.settle("box-1", SettledBill(Estimate(2.20)))  # the bill is twice what our own clock says
    assert ledger.spend_since(0) == pytest.approx(2.20)
    assert ledger.all_intervals() == {run.id: ledger.intervals(run.id)}


def test_a_training_without_a_driver_goes_on_costing(ledger: Ledger, clock: Clock) -> None:
    run = a_run()
    ledger.add_run(run)
    launch = ledger.open_stage(run.id, "box-1", "launch", 36.0)
    ledger.set_state(run.id, State.TRAINING)
    ledger.close_stage(launch)
    clock.time += 0.5
    probe = ledger.open_stage(run.id, "box-1", "launch", 36.0)  # the same driver goes on: nobody was away
    ledger.close_stage(probe)
    clock.time += 3600  # detached; somebody resumes an hour later
    follow = ledger.open_stage(run.id, "box-1", "follow", 36.0)
    ledger.set_state(run.id, State.ENDING, outcome=Outcome.FINISHED)
    ledger.close_stage(follow)
    clock.time += 3600  # the laptop sleeps in the ending: the machine does not train
    ledger.open_stage(run.id, "box-1", "fetch", 36.0)
    stages = [(each.stage, (each.ended_at or each.last_at) - each.started_at) for each in ledger.intervals(run.id)]
    assert stages == [
        ("launch", 0.0), ("launch", 0.0), ("away", 3600.0), ("follow", 0.0), ("fetch", 0.0),
    ]  # fmt: skip
    assert ledger.spend_since(0) == pytest.approx(36.0)
    ledger.end_away(run.id, 1_000_000.5 + 600)
    assert ledger.spend_since(0) == pytest.approx(6.0), "the agent says that it ended after ten minutes"
    ledger.end_away(run.id, 0.0)
    assert ledger.spend_since(0) == 0.0


def test_what_waited_in_a_queue_without_a_bill_was_another_runs_time(ledger: Ledger, clock: Clock) -> None:
    ledger.add_run(run := a_run())
    launch = ledger.open_stage(run.id, None, "launch", 0.0)
    clock.time += 10
    ledger.close_stage(launch)
    for _ in range(2):  # followed twice while it waits; its turn comes in the middle of the second time
        follow = ledger.open_stage(run.id, None, "follow", 0.0)
        clock.time += 100
        ledger.close_stage(follow)
    follow = ledger.open_stage(run.id, None, "follow", 0.0)
    clock.time += 5
    ledger.touch_stage(follow)
    ledger.end_waiting(run.id, 1_000_000.0 + 160)
    lasted = [(each.ended_at or each.last_at) - each.started_at for each in ledger.intervals(run.id)]
    assert lasted == [10.0, 0.0, 50.0, 5.0]


def test_intents_and_attempts_and_rates(ledger: Ledger, clock: Clock) -> None:
    ledger.add_intent(Intent("i-1", "box-1", 1.0, request=IntentRequest(sku="gpu_8x")))
    ledger.add_intent(Intent("i-2", "box-1", 2.0))
    assert ledger.close_intent("i-1", "refused", IntentAnswer(error="no capacity")).closed_at == clock()
    assert [intent.id for intent in ledger.intents("box-1", open_only=True)] == ["i-2"]
    assert [intent.state for intent in ledger.intents()] == ["refused", "open"]
    with pytest.raises(UserError, match="no intent ghost"):
        ledger.close_intent("ghost", "refused")
    ledger.add_run(a_run("r"))
    ledger.add_attempt(Attempt("r", 1, "box-1", 1.0))
    ledger.update_attempt("r", 1, last_step=40, ended_at=9.0)
    assert ledger.attempts("r") == [Attempt("r", 1, "box-1", 1.0, 9.0, 40)]
    first = RateRecord("r", "1x3090", 20_000.0, 8.5e8, 5.0, True, "bf16")
    later = dataclasses.replace(first, tokens_per_second=21_000.0, measured_at=6.0, compiled=False)
    ledger.add_rate(first)
    ledger.add_rate(later)
    assert ledger.rates() == [later]


def test_a_released_rental_is_not_open(ledger: Ledger) -> None:
    assert [rental.id for rental in ledger.rentals(open_only=True)] == ["box-1"]
    ledger.update_rental("box-1", state="released", released_at=9.0)
    assert ledger.rental("box-1").released_at == 9.0
    assert ledger.rentals(open_only=True) == []
    with pytest.raises(UserError, match="no rental ghost"):
        ledger.update_rental("ghost", state="released")


@given(st.text(max_size=60), st.floats(0, 4e9))
def test_ids_are_short_safe_and_different(name: str, now: float) -> None:
    ids = [make(name, now) for make, _ in itertools.product((new_run_id, new_rental_id), range(3))]
    assert all(PATTERN.fullmatch(item) and len(item) <= 40 for item in ids)
    assert len(set(ids)) == len(ids)


def test_ids_read_like_what_they_name() -> None:
    assert new_run_id("chinchilla_163m_baseline", 1_795_132_800.0).startswith("chinchilla-163m-base-1120-")
    assert new_rental_id("8xA100-40GB", 1_795_132_800.0).startswith("8xa100-40gb-1120-")


def test_a_ledger_is_closed_when_no_thread_is_inside_it(tmp_path: Path) -> None:
    """Ctrl-C while several nodes get ready: closed under a thread of theirs, SQLite ended Python."""
    ledger, inside, order = Ledger.open(tmp_path, time.time), threading.Event(), list[str]()

    def look() -> None:
        with ledger.rows.turn:
            inside.set()
            time.sleep(0.1)
            order.append(f"read {len(ledger.runs())}")

    thread = threading.Thread(target=look)
    thread.start()
    inside.wait(5)
    ledger.close()
    order.append("closed")
    thread.join()
    assert order == ["read 0", "closed"]

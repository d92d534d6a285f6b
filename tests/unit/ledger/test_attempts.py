"""A new attempt begins a run again on another rental, in one transaction, and only one that was taken away."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.facts.run_facts import Prepared, Recovery, ResumeFrom, RunFacts
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import attempts
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord

NOW = 1_000_000.0


@pytest.mark.parametrize("outcome", [Outcome.PREEMPTED, Outcome.FINISHED, Outcome.STOPPED])
def test_only_a_run_that_was_taken_away_begins_again(tmp_path: Path, outcome: Outcome) -> None:
    with Ledger.open(tmp_path, lambda: NOW) as ledger:
        ledger.add_rental(Rental("one", "rehearsal", "box", "2xCPU", NOW))
        facts = RunFacts(prepared=Prepared("/usr/bin/python3"), recovery=Recovery(most=3))
        ledger.add_run(RunRecord("r", "tiny", "box", "2xCPU", NOW, rental_id="one", facts=facts))
        ledger.set_state("r", State.ENDING, outcome=outcome, cause="why")
        ledger.update_run("r", step=450)
        origin = ResumeFrom("/here/step-000400", 400)
        changes = {"prepared": None, "resume_from": origin, "recovery": Recovery(most=3, interruptions=1)}
        two = Rental("two", "rehearsal", "box", "2xCPU", NOW)
        attempts.begin(ledger.rows, ledger.run("r"), two, changes, step=400, now=NOW)  # type: ignore[arg-type]
        run = ledger.run("r")
        if outcome is not Outcome.PREEMPTED:
            assert (run.state, run.outcome, run.rental_id, run.step) == (State.ENDING, outcome, "one", 450)
            assert [rental.id for rental in ledger.rentals()] == ["one"] and run.facts.prepared is not None
            return
        assert (run.state, run.outcome, run.cause, run.rental_id, run.step) == (State.PLANNED, None, "", "two", 400)
        assert (run.facts.prepared, run.facts.resume_from, run.facts.recovery) == (None, origin, Recovery(3, {}, 1))
        ledger.set_state("r", State.ACQUIRING)

"""Who pays for a shared machine: the run that trains, not those that wait or get ready beside it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.core.facts.run_facts import EarlyStop, QueueFacts, RunFacts
from orchestrator.core.states import Outcome, State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.queue_turn import price_per_hour_usd, stop_rule

RENTAL = Rental("r-1", "lambda", "box", "1xH100", 1.0, price_per_hour_usd=2.0)


@pytest.mark.parametrize(
    ("first", "second", "price"),
    [
        pytest.param(State.TRAINING, QueueFacts(), 0.0, id="beside one that trains"),
        pytest.param(State.TRAINING, None, 2.0, id="without a queue: as ever"),
        pytest.param(State.TRAINING, QueueFacts(has_started=True), 2.0, id="its turn has come"),
        pytest.param(State.PREPARING, QueueFacts(), 2.0, id="nothing trains yet"),
        pytest.param(State.ENDED, QueueFacts(), 2.0, id="the one before has ended"),
    ],
)
def test_what_waits_costs_nothing(tmp_path: Path, first: State, second: QueueFacts | None, price: float) -> None:
    with Ledger.open(tmp_path / "home", lambda: 5.0) as ledger:
        ledger.add_rental(RENTAL)
        for run_id, queue in (("a-1", QueueFacts()), ("b-1", second)):
            ledger.add_run(
                RunRecord(run_id, "tiny", "box", "1xH100", 2.0, rental_id="r-1", facts=RunFacts(queue=queue))
            )
        if first is State.ENDED:
            ledger.set_state("a-1", State.ENDING, outcome=Outcome.FINISHED)
        ledger.set_state("a-1", first)
        prices = [
            price_per_hour_usd(
                cast(
                    "RunContext",
                    SimpleNamespace(
                        ledger=ledger, run_id=run_id, facts=ledger.run(run_id).facts, rental=RENTAL,
                        provider=SimpleNamespace(paid=True), engine_of=None,
                    ),
                )
            )
            for run_id in ("a-1", "b-1")
        ]  # fmt: skip
        assert prices == [2.0, price]


def test_an_arm_takes_the_losses_of_its_baseline_along(tmp_path: Path) -> None:
    stop = EarlyStop("base-1", 200, 0.1)
    assert stop_rule(stop, tmp_path)["losses"] == []
    (tmp_path / "base-1").mkdir()
    lines = [json.dumps({"event": "validated", "step": step, "val_loss": 4 - step / 400}) for step in (100, 200)]
    (tmp_path / "base-1" / "events.jsonl").write_text("\n".join([*lines, '{"event": "vali']))
    assert stop_rule(stop, tmp_path) == {
        "baseline": "base-1", "step": 200, "margin": 0.1, "losses": [[100, 3.75], [200, 3.5]],
    }  # fmt: skip

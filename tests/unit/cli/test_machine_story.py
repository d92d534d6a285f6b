"""What stays on the screen about a machine after its run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.runs.machine_story import machine_end, machine_story
from orchestrator.core.events import Event
from orchestrator.core.facts.rental_facts import MachineLife, RentalFacts
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import (
    INTENT_BOUGHT,
    INTENT_REFUSED,
    Intent,
    IntentAnswer,
    IntentRequest,
    Rental,
    RunRecord,
)

RENTAL = Rental("rental-1", "lambda", "cloud", "8xA100-40GB", 1.0, "i-1", 15.92, "released")
RUN = RunRecord("run-1", "quickstart", "cloud", "8xA100-40GB", 1.0, rental_id="rental-1")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    found = Ledger.open(tmp_path, time.time)
    facts = RentalFacts(region="us-east-1", life=MachineLife(gone_at=1_796_000_000.0))
    found.add_rental(replace(RENTAL, facts=facts))
    found.add_run(RUN)
    return found


def test_refused_rented_survived_destroyed(ledger: Ledger) -> None:
    west, east = IntentRequest("us-west-1", "", "sku"), IntentRequest("us-east-1", "", "sku")
    ledger.add_intent(Intent("a", "rental-1", 1.0, request=west))
    ledger.close_intent("a", INTENT_REFUSED, IntentAnswer(error="no capacity. Try later."))
    ledger.add_intent(Intent("b", "rental-1", 2.0, request=east))
    ledger.close_intent("b", INTENT_BOUGHT, IntentAnswer(instance_id="i-1"))
    for text in ("the link broke. It is back", "the link broke. It is back", "\x1b[31mslow"):
        ledger.tell("run-1", Event("seen", 3.0, "follow", text))
    assert list(machine_story(ledger, RUN)) == [
        "refused: us-west-1: no capacity",
        "rented: 8xA100-40GB in us-east-1 at $15.92/h (i-1)",
        "survived: the link broke (2 times)",
        "survived: slow",
    ]
    assert machine_end(ledger, RUN).startswith("destroyed: i-1, gone at 2026-")
    assert machine_end(ledger, RUN).endswith("as lambda confirmed")


def test_a_machine_that_is_still_rented_is_never_called_destroyed(ledger: Ledger) -> None:
    ledger.update_rental("rental-1", state="open")
    assert machine_end(ledger, RUN) == "still rented: i-1 at $15.92/h"


def test_your_own_machine_has_no_bill_to_end(ledger: Ledger) -> None:
    own = replace(RUN, id="run-2", rental_id="own")
    ledger.add_rental(Rental("own", "ssh", "box", "1x3090", 1.0))
    ledger.add_run(own)
    assert machine_end(ledger, own) == "" and list(machine_story(ledger, own)) == []

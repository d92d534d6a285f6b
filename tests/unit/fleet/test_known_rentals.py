"""What the ledger holds of a rental, for `orphans`, which names it whether a list shows it or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.facts.rental_facts import GivenBack, RentalFacts
from orchestrator.core.money.billing import MachineLife
from orchestrator.fleet.known_rentals import known
from orchestrator.ledger.records import Rental

SECOND = GivenBack("i-2", MachineLife(booting_at=1.0, alive_at=5.0))
ENDED = GivenBack("i-0", MachineLife(booting_at=1.0, alive_at=5.0, gone_at=9.0))
RENTAL = Rental(
    "r-1", "lambda", "cloud", "8xA100-40GB", 1.0, instance_id="i-1", ends_at=70.0, price_per_hour_usd=15.92,
    facts=RentalFacts(region="us-1", given_back=(ENDED, SECOND)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, ["i-1", "i-2"]),
        ({"instance_id": None}, ["i-2"]),
        ({"state": "released"}, []),
        ({"provider": "ssh"}, []),
        ({"facts": RentalFacts()}, ["i-1"]),
    ],
)
def test_a_second_machine_is_held_until_its_end_was_seen(changes: dict[str, object], held: list[str]) -> None:
    found = known(replace(RENTAL, **changes), []).machines  # type: ignore[arg-type]
    assert [each.instance_id for each in found] == held
    assert {(each.rental_id, each.ends_at, each.region) for each in found} <= {("r-1", 70.0, "us-1"), ("r-1", 70.0, "")}

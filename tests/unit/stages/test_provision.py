"""What an earlier probe of a machine is worth."""

from __future__ import annotations

import pytest

from orchestrator.stages.machine.interpreter import is_fresh

KNOWN = {"python": "/x/bin/python", "boot_id": "b-1", "driver": "580.65"}


@pytest.mark.parametrize(
    ("facts", "fresh"),
    [
        ({"boot_id": "b-1", "driver": "580.65"}, True),
        ({"boot_id": "b-2", "driver": "580.65"}, False),
        ({"boot_id": "b-1", "driver": "581.00"}, False),
        ({"boot_id": "b-1", "driver": None}, False),
    ],
)
def test_a_probe_counts_for_its_boot_and_driver_only(facts: dict[str, str | None], fresh: bool) -> None:
    assert is_fresh(KNOWN, facts) is fresh


def test_without_a_boot_id_every_boot_is_another_one() -> None:
    assert not is_fresh({**KNOWN, "boot_id": ""}, {"boot_id": "", "driver": "580.65"})

"""Machines that answer no SSH while they are billed, and other lies that gptctl survives."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.faults.conftest import Rehearsal
from tests.faults.lies import silence

pytestmark = pytest.mark.faults
SENT_WITHIN_S = 90.0
"""20 s at a load of 30 on two cores, most of it the start of Python."""


@pytest.mark.parametrize("fault", ["frozen", "ssh-gone"])
def test_release_by_force_ends_a_machine_that_answers_no_ssh(rehearse: Callable[..., Rehearsal], fault: str) -> None:
    place = rehearse(f"12.2 release --force of a machine: {fault}")
    silence(place, fault)
    began = time.time()
    place.gptctl("release", place.run_id(), "--force", "--yes", deadline_s=400)
    sent = [each["started"] - began for each in place.cloud.requests("/terminate")]
    assert place.code == 0 and sent and sent[0] < SENT_WITHIN_S, (sent, place.said)
    assert place.settled()
    place.figures[place.fault] += f"  terminate sent after {sent[0]:.0f} s"

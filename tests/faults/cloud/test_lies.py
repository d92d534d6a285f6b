"""Machines that answer no SSH while they are billed, and other lies that gptctl survives."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults.cloud.lies import silence
from tests.faults.conftest import Clocks, Rehearsal
from tests.stories.conftest import wait_until

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


def test_the_agent_is_gone_from_the_machine(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("12.2 release --force, the agent's folder removed")
    place.killed_at("stage_finished:provision")
    (place.cloud.home(place.machine()) / ".gptctl").rename(place.cloud.home(place.machine()) / "moved")
    place.gptctl("release", place.run_id(), "--force", "--yes")
    assert place.settled()
    assert place.code == 0, place.said
    assert "launch" not in place.said


def test_force_while_another_gptctl_hangs(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("12.2 release --force beside a gptctl that hangs")
    place.write(steps=4000)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    process.send_signal(signal.SIGSTOP)
    try:
        place.gptctl("release", place.run_id(), "--force", "--yes")
        assert place.code == 0 and f"pid {process.pid}" in place.said, place.said
        assert not place.cloud.books()["alive"]
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(240) == 0, place.words()
    assert place.settled()
    place.check(outcome="stopped")


@pytest.mark.parametrize("lie", ["html@900", "silent@900", "500*forever"])
def test_the_api_is_no_help_at_release(rehearse: Callable[..., Rehearsal], clocks: Clocks, lie: str) -> None:
    place = rehearse(f"12.10 release while the API says {lie}", f"--python={clocks.python}", env=clocks.env)
    place.write(python=str(clocks.python))
    place.killed_at("stage_finished:acquire")
    place.cloud.inject(lie)
    process = place.start("release", place.run_id(), "--force", "--yes")
    wait_until(lambda: process.poll() is not None or clocks.move_on(60), 240, 2)
    place.wait(process, 30)
    assert place.settled()
    assert place.code == 7, place.said


def test_a_price_of_0(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("12.13 a price of 0")
    place.cloud.inject("price-change@0")
    place.gptctl("offers")
    place.run()
    assert place.code == 3 and "0.00" in place.said and "None" not in place.said, place.said
    assert place.settled(bought=0)


def test_tls_fails(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("12.13 TLS fails")
    file = place.cloud.state / "server.json"
    entry = json.loads(file.read_text())
    file.write_text(json.dumps({**entry, "url": entry["url"].replace("http:", "https:")}))
    place.run()
    file.write_text(json.dumps(entry))
    assert place.code == 3 and "None" not in place.said, place.said
    assert place.settled(bought=0)

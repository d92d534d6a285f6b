"""The link and the laptop: Wi-Fi that goes, a lid that closes, in every stage of a run on a rented machine."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.faults.conftest import Clocks, Rehearsal
from tests.stories.conftest import wait_until

pytestmark = pytest.mark.faults
HOUR_S = 3600.0
STAGES = ("acquire", "provision", "sync", "launch", "follow", "fetch", "release")


def ended(process: subprocess.Popen[str], within_s: float) -> bool:
    """Whether it ends by itself in that time."""
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("stage", STAGES)
def test_no_network_for_an_hour(rehearse: Callable[..., Rehearsal], clocks: Clocks, stage: str) -> None:
    """All clocks go on by an hour while no packet comes through: of the laptop, of the machine and of the cloud."""
    place = rehearse(
        f"Wi-Fi gone for an hour: {stage}", f"--python={clocks.python}", env=clocks.env, steps=200, most_usd=100,
        python=str(clocks.python),
    )  # fmt: skip
    process = place.begin()
    place.until(f"stage_started:{stage}")
    with place.no_network():
        ended(process, 15)
        wait_until(place.trains_nowhere, 90)  # an hour would have been enough for it
        clocks.move(HOUR_S)
        ended(process, 15)
        row = place.newest()
        assert stage in ("fetch", "release") or row["outcome"] is None, "silence is no verdict"
    if not ended(process, 90) or process.returncode:
        process.kill()
        process.wait()
        resumed = place.gptctl("resume", place.run_id())
        assert resumed.returncode == 0, place.words() + resumed.stderr
    assert "Traceback" not in place.words()
    place.check()


def test_asleep_while_data_goes_out(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F1 asleep in sync, then no link")
    process = place.begin()
    place.until("stage_started:sync")
    process.send_signal(signal.SIGSTOP)
    with place.no_network(api=False):
        assert not ended(process, 3)
        process.send_signal(signal.SIGCONT)
        ended(process, 25)
    if not ended(process, 60) or process.returncode:
        resumed = place.gptctl("resume", place.run_id())
        assert resumed.returncode == 0, place.words() + resumed.stderr
    place.check()


def test_the_link_breaks_while_following(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F2 link lost in the log stream", steps=400)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    with place.no_network(api=False):
        place.until("seen:follow", deadline_s=20)
    assert process.wait(480) == 0, place.words()
    lines = (place.home / "runs" / place.run_id() / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, *range(5, 401, 5)]
    place.check()


def test_sessions_are_dropped(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F2 every session dropped")
    run = place.run(inject="ssh-drop@10")
    assert run.returncode == 0, run.stderr
    assert place.cloud.fired() == ["ssh-drop"]
    place.check()


def test_the_laptop_sleeps_through_the_training(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("laptop asleep from step 5 until long after the end", steps=200)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    process.send_signal(signal.SIGSTOP)
    wait_until(place.exit_file().exists, 90)
    process.send_signal(signal.SIGCONT)
    assert process.wait(360) == 0, place.words()
    place.check()


def test_the_laptop_sleeps_for_an_hour(rehearse: Callable[..., Rehearsal], clocks: Clocks) -> None:
    """Its wall clock goes on, its steady clock does not; the machine waits for it, and that hour is on the bill."""
    place = rehearse(
        "laptop asleep for an hour", f"--python={clocks.python}", env=clocks.env, steps=200, most_usd=100,
        python=str(clocks.python),
    )  # fmt: skip
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    process.send_signal(signal.SIGSTOP)
    wait_until(place.exit_file().exists, 90)
    clocks.move(HOUR_S, asleep=True)
    process.send_signal(signal.SIGCONT)
    assert process.wait(360) == 0, place.words()
    place.check()
    assert 15.92 < place.newest()["cost_usd"] < 2 * 15.92


def test_the_laptops_clock_is_set_back(rehearse: Callable[..., Rehearsal], clocks: Clocks) -> None:
    """By an hour in mid-run, as a wrong one is corrected: the bill still counts every minute."""
    place = rehearse("the laptop's clock is set back an hour", steps=400)
    place.env |= clocks.env
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    clocks.move(-HOUR_S, asleep=True)
    assert process.wait(360) == 0, place.words()
    place.check()


def test_the_caller_gets_another_address(rehearse: Callable[..., Rehearsal]) -> None:
    """Another Wi-Fi in mid-run: every connection is dead, and the next one comes from somewhere else."""
    place = rehearse("the caller's address changes", steps=400)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    with place.caller_at("127.0.0.77"):
        place.cloud.inject("ssh-drop@0")
        assert process.wait(480) == 0, place.words()
    assert place.cloud.fired() == ["ssh-drop"]
    place.check()


@pytest.mark.parametrize("stage", STAGES)
def test_the_wifi_drops_for_some_seconds(rehearse: Callable[..., Rehearsal], stage: str) -> None:
    """Nobody is there to type `resume`: the same gptctl connects again and goes on to the machine's end."""
    place = rehearse(f"Wi-Fi drops for 20 s: {stage}", steps=200)
    process = place.begin()
    place.until(f"stage_started:{stage}")
    with place.no_network():
        ended(process, 20)
    assert place.wait(process) == 0, place.words()
    place.check()

"""Ends of the bill: an API that refuses or lies while the machine is given back, guards, a watcher beside live runs."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest

from tests.faults.conftest import Rehearsal
from tests.stories.conftest import end, wait_until

pytestmark = pytest.mark.faults
LEASE_S = 8


@pytest.mark.parametrize(
    ("fault", "inject"),
    [
        ("F22 end answers 401 once", "terminate-401"),
        ("F23 end asked for, the question lost", "timeout-before-effect@terminate"),
        ("F16 no rest for the list while it ends", "429@list*2,500@list*2"),
        ("answers of the wrong types", "wrong-types@list*2"),
        ("answers cut in the middle", "broken-body@list*2"),
        ("an answer of one GiB", "giant-answer@list"),
        ("a redirect to another host", "redirect@list*2"),
        ("the new name is not taken at first", "rename-ignored"),
    ],
)
def test_answers_that_lie_once_the_machine_is_up(rehearse: Callable[..., Rehearsal], fault: str, inject: str) -> None:
    place = rehearse(fault)
    process = place.begin()
    place.until("stage_finished:acquire")
    place.cloud.inject(inject)
    code = process.wait(600)
    for _ in range(2):
        if code:
            assert code in (3, 7), place.words()
            code = place.gptctl("resume", place.run_id()).returncode
    assert code == 0, place.words()
    assert "Traceback" not in place.words() and "stolen" not in place.words()
    assert place.cloud.fired(), "the fault never happened"
    place.check()


def test_the_end_is_ignored_and_the_user_leaves(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F22 end ignored for good, the user leaves")
    place.cloud.inject("terminate-ignored*forever")
    process = place.begin()
    place.until("stage_started:release")
    wait_until(lambda: "terminate-ignored" in place.cloud.fired(), 30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 7, place.words()
    machine = place.machine()
    assert machine in place.words() and "15.92" in place.words()
    found = json.loads(place.gptctl("orphans", "--json").stdout)["machines"]
    assert [row["instance_id"] for row in found] == [machine]
    place.cloud.ask("POST", "/rehearsal/inject", {"clear": "terminate-ignored"})
    again = place.gptctl("resume", place.run_id())
    assert again.returncode == 0, again.stderr
    place.check()


def test_the_key_is_revoked_in_mid_run(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("API key revoked while it trains")
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    place.cloud.inject("key-revoked")
    wait_until(lambda: "release: " in place.words() or process.poll() is not None, 90)
    end(process)
    assert place.machine()
    place.cloud.ask("POST", "/rehearsal/inject", {"clear": ""})
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 0, resumed.stderr
    place.check()


def test_a_watcher_beside_a_live_run_leaves_it_alone(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("the watcher beside a live run", steps=200)
    process = place.begin()
    while process.poll() is None:
        reaped = place.gptctl("orphans", "--reap", "--json")
        assert reaped.returncode == 0 and json.loads(reaped.stdout)["reaped"] == []
    assert process.returncode == 0, place.words()
    place.check()


def test_a_watcher_ends_what_the_laptop_left(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 laptop gone, deadline over: the watcher ends it")
    place.killed_at("stage_finished:provision")
    machine = place.machine()
    row = place.cloud.get(f"instances/{machine}")
    # Its name as a watcher sees it an hour and a half later.
    over = f"{row['name'].rpartition('-')[0]}-{int(time.time()) - 400}"
    place.cloud.post(f"instances/{machine}", {"name": over})
    assert place.gptctl("orphans").returncode == 7
    reaped = place.gptctl("orphans", "--reap", "--json")
    assert [each["instance_id"] for each in json.loads(reaped.stdout)["reaped"]] == [machine]
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode in (3, 6), resumed.stderr
    place.check(outcome=None)


def test_the_box_ends_itself_when_the_laptop_is_gone(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 laptop gone: the key on the box ends it", guard="key-on-box")
    place.env["GPTCTL_LEASE_S"] = str(LEASE_S)
    place.killed_at("stage_finished:acquire")
    assert place.machine()
    wait_until(lambda: not place.cloud.books()["alive"], 10 * LEASE_S)
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 6, resumed.stderr
    place.check(outcome="limit")


def test_resumed_while_the_machine_is_still_ending(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 resumed while the machine is just ending", guard="key-on-box")
    place.cloud.inject("slow-terminate@20")
    place.env["GPTCTL_LEASE_S"] = str(LEASE_S)
    place.killed_at("stage_finished:acquire")
    wait_until(lambda: not place.cloud.books()["alive"], 10 * LEASE_S)
    resumed = place.gptctl("resume", place.run_id())
    assert "is ending; waiting until it is gone" in resumed.stderr
    assert resumed.returncode == 6, resumed.stderr
    place.check(outcome="limit")


def test_the_lease_is_over_during_fetch(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F33 the lease runs out during the fetch", guard="key-on-box")
    (place.folder / "tiny.toml").write_text((place.folder / "tiny.toml").read_text() + "[limits]\nhold_h = 0.001\n")
    place.env["GPTCTL_LEASE_S"] = str(LEASE_S)
    process = place.begin()
    place.until("stage_started:fetch")
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not place.cloud.books()["alive"], 12 * LEASE_S)
    process.send_signal(signal.SIGCONT)
    code = process.wait(360)
    if code:
        code = place.gptctl("resume", place.run_id()).returncode
    assert "Traceback" not in place.words()
    place.check(outcome=None)
    assert place.newest()["state"] == "ended"

"""Spot machines that are taken away at short notice, and machines of guard `self`: rebooted, and robbed of their timer
and their guard's process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Rehearsal
from tests.stories.conftest import end, wait_until

pytestmark = pytest.mark.faults


def spot(place: Rehearsal, *, hold_h: float | None = None, lease_s: float = 60) -> None:
    """The host rents on the spot market, and its machines end themselves by power-off."""
    file = place.folder / "inventory.toml"
    file.write_text(file.read_text().replace('guard = "watcher"', 'guard = "self"\nspot = true'))
    place.env["GPTCTL_LEASE_S"] = str(lease_s)
    if hold_h is not None:
        recipe = place.folder / "tiny.toml"
        recipe.write_text(f"{recipe.read_text()}[limits]\nhold_h = {hold_h}\n")


def there(place: Rehearsal, pattern: str) -> Path:
    """The one file of that name in gptctl's folder on the machine."""
    (found,) = (place.cloud.home(place.machine()) / ".gptctl").glob(pattern)
    return found


def told(place: Rehearsal, kind: str) -> list[dict[str, Any]]:
    lines = (place.cloud.state / "books.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_notice_while_gptctl_follows(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F5 spot notice at step 50, gptctl follows", steps=4000, every=2000)
    spot(place)
    run = place.run(inject="notice@50")
    assert run.returncode == 3, run.stderr
    assert f"--resume-from {place.run_id()}" in run.stderr
    (notice,), (ended,) = told(place, "notice"), told(place, "ended")
    assert ended["time"] < notice["taken_at"], "given back before it was taken"
    assert place.newest()["safe_step"] >= 50, "only the notice made it save: the next was due at step 2000"
    place.check(outcome="preempted")


def test_a_notice_while_the_laptop_is_away(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F5 spot notice, the laptop is away", "--notice-s=40", steps=4000, every=200)
    spot(place)
    process = place.begin()
    wait_until(lambda: place.trained(200) and place.newest()["safe_step"], 120)
    end(process)
    place.cloud.inject("notice@0")
    exit_file = there(place, "jobs/*/train/state.json").with_name("exit.json")
    wait_until(exit_file.exists, 60)
    assert json.loads(exit_file.read_text())["outcome"] == "preempted"
    wait_until(lambda: not place.cloud.books()["alive"], 90)
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 3, resumed.stderr
    assert f"--resume-from {place.run_id()}" in resumed.stderr
    place.check(outcome="preempted")


def test_it_reboots_with_nobody_there(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 guard self: rebooted with nobody there", steps=4000, every=40)
    spot(place, hold_h=0.003, lease_s=20)
    process = place.begin()
    wait_until(lambda: place.trained(45), 120)
    end(process)
    first = json.loads(there(place, "guard/state.json").read_text())["guard"]
    place.cloud.inject("reboot@0")
    wait_until(lambda: json.loads(there(place, "guard/state.json").read_text())["guard"] != first, 60)
    wait_until(lambda: not place.cloud.books()["alive"], 120)
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 6, resumed.stderr
    place.check(outcome="limit")


def test_its_timer_and_its_guard_are_killed(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F32 guard self: its timer and its process are killed", steps=4000, every=400)
    spot(place, lease_s=16)
    process = place.begin()
    wait_until(lambda: place.trained(20), 120)
    timer = place.cloud.machine_folder(place.machine()) / "lib" / "gptctl-self" / "process"
    guard = there(place, "guard/state.json")
    pids = (int(timer.read_text().split()[0]), json.loads(guard.read_text())["guard"]["pid"])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: json.loads(guard.read_text())["guard"]["pid"] != pids[1], 60)
    wait_until(lambda: int(timer.read_text().split()[0]) != pids[0], 30)
    assert place.newest()["guard"]["armed"]
    assert place.gptctl("stop", place.run_id(), "--yes").returncode == 0
    assert process.wait(120) == 0, place.words()
    place.check(outcome="stopped")

"""Guard `self`: a real process on 'its machine' moves the timer while it is needed, and powers it off when not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.system import processes
from tests.contract.guard.test_guard_process import checkpoint, notes, status
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box
from tests.support.machines.self_machine import RENTAL, SelfMachine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SelfMachine]:
    machine = SelfMachine(tmp_path / "machine")
    machine.boot()
    monkeypatch.setenv("PATH", machine.path)
    yield machine
    machine.kill_timer()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    kill_guard(box)
    box.end()


def kill_guard(box: Box) -> None:
    guard = notes(box).get("guard") or {}
    if processes.is_alive(guard):
        os.kill(guard["pid"], signal.SIGKILL)
    until(lambda: not processes.is_alive(guard))


def order(lease_s: float = 1800, deadline_s: float = 7200, rental: str = RENTAL) -> dict[str, Any]:
    return {"kind": "self", "instance_id": "i-1", "rental": rental, "lease_s": lease_s, "deadline_s": deadline_s}


def armed(box: Box, **settings: float) -> dict[str, Any]:
    answer = box.call("arm", **order(**settings))
    assert answer["guard"]["armed"], answer
    return dict(answer["guard"])


def test_it_is_armed_from_the_boot_before_any_agent_came(box: Box, machine: SelfMachine) -> None:
    found = status(box)
    assert (found["kind"], found["armed"], found["by"]) == ("self", True, "shutdown")
    assert 5370 < found["deadline_left_s"] <= 5400


def test_the_agents_lease_moves_the_timer_with_some_slack_and_never_past_the_deadline(
    box: Box, machine: SelfMachine
) -> None:
    found = armed(box, lease_s=1800, deadline_s=7200)
    assert 1770 <= found["left_s"] <= 1800 and 2070 <= found["timer_left_s"] <= 2100
    found = armed(box, lease_s=1800, deadline_s=1900)
    assert found["timer_left_s"] <= 1900 and machine.left_s() <= 1900
    box.call("renew", duration_s=9000)
    assert status(box)["left_s"] <= 1900 and machine.left_s() <= 1900


def test_the_guards_process_moves_the_timer_when_the_deadline_moves(box: Box, machine: SelfMachine) -> None:
    armed(box, lease_s=1800, deadline_s=7200)
    box.call("arm", **order(lease_s=8, deadline_s=300))
    until(lambda: machine.left_s() <= 300)
    assert 0 < status(box)["timer_left_s"] <= 300


def test_at_the_end_of_the_lease_it_powers_off_and_again_if_the_machine_lives_on(
    box: Box, machine: SelfMachine
) -> None:
    armed(box, lease_s=1)
    until(lambda: machine.off >= 2)
    assert status(box)["ending"]


def test_it_holds_what_nobody_fetched_and_goes_when_all_of_it_is_safe(box: Box, machine: SelfMachine) -> None:
    box.start(steps=3, spec_lease_s=0.5, spec_hold_s=600)
    box.wait()
    folder = checkpoint(box, 3)
    armed(box, lease_s=1)
    until(lambda: status(box)["holding"] == 1 and status(box)["lease_left_s"] < 0)
    assert machine.off == 0
    (folder / "SAFE").touch()
    until(lambda: machine.off > 0)


def test_a_killed_guard_leaves_the_timer_which_fires_by_itself(box: Box, machine: SelfMachine) -> None:
    armed(box, lease_s=1, deadline_s=3)
    kill_guard(box)
    machine.run("in", RENTAL, "2")
    found = status(box)
    assert found["armed"] and "killed" in found["problem"]
    until(lambda: machine.off > 0)


def test_a_guard_that_was_killed_is_started_again_by_the_training(box: Box, machine: SelfMachine) -> None:
    armed(box)
    box.start(steps=5000, spec_lease_s=1)
    box.until_steps(2)
    first = notes(box)["guard"]
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: notes(box).get("guard") != first and processes.is_alive(notes(box)["guard"]))
    assert until(lambda: status(box)["armed"])


def test_a_timer_that_was_killed_is_armed_again(box: Box, machine: SelfMachine) -> None:
    armed(box)
    machine.kill_timer()
    assert not status(box)["armed"]
    until(lambda: status(box)["armed"])


def test_after_a_reboot_timer_and_guard_are_back_without_anybody(box: Box, machine: SelfMachine) -> None:
    armed(box, lease_s=900, deadline_s=1000)
    kill_guard(box)
    file = box.root / "guard" / "lease.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "an earlier boot"}))
    first = notes(box)["guard"]
    machine.reboot()
    until(lambda: notes(box).get("guard") != first and processes.is_alive(notes(box)["guard"]))
    found = status(box)
    assert found["armed"] and found["timer_left_s"] <= 1000 and found["problem"] is None


def test_finish_powers_off_soon(box: Box, machine: SelfMachine) -> None:
    armed(box)
    assert box.call("finish", within_s=1)["guard"]["deadline_left_s"] <= 1
    until(lambda: machine.off > 0)


@pytest.mark.parametrize("rental", ["another-rental", ""])
def test_an_order_for_another_rental_is_refused_and_powers_nothing_off(
    box: Box, machine: SelfMachine, rental: str
) -> None:
    error = box.call("arm", **order(lease_s=1, deadline_s=1, rental=rental))["error"]
    assert error["code"] in ("no-timer", "bad-request")
    assert box.call("finish", within_s=1)["guard"]["kind"] == "self"
    assert machine.off == 0 and machine.left_s() > 5000


def test_a_computer_without_the_timer_is_never_powered_off(box: Box) -> None:
    error = box.call("arm", **order())["error"]
    assert error["code"] == "no-timer" and "launch" in error["message"]
    assert status(box) == {"kind": "none", "armed": False, "ends_at": None}

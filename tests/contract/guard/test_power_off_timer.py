"""The timer that powers a machine off, put there by the user data: armed by the boot, moved, read back, and fired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.remote.shell.key_pairs import new_key_pair
from orchestrator.stages.machine.first_contact.cloud_init import Timer, user_data
from tests.support.clock.waiting import until
from tests.support.machines.self_machine import RENTAL, SelfMachine

EC2_MOST_BYTES = 16_384


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SelfMachine]:
    machine = SelfMachine(tmp_path / "machine")
    machine.boot()
    yield machine
    machine.kill_timer()


def test_the_boot_arms_it_before_anybody_comes(machine: SelfMachine) -> None:
    rental, kind, seconds = machine.left()
    assert (rental, kind) == (RENTAL, "shutdown") and 5395 <= int(seconds) <= 5400
    assert machine.shutdowns() == ["-P +90"]


def test_it_moves_both_ways_and_only_one_waits(machine: SelfMachine) -> None:
    assert machine.run("in", RENTAL, "7300").returncode == 0
    assert 7295 <= machine.left_s() <= 7300
    assert machine.run("in", RENTAL, "600").returncode == 0
    assert 595 <= machine.left_s() <= 600
    assert machine.shutdowns() == ["-P +90", "-c", "-P +121", "-c", "-P +10"]


def test_under_two_minutes_seconds_count_and_it_powers_off(machine: SelfMachine) -> None:
    machine.run("in", RENTAL, "1")
    assert machine.left()[1] == "sh"
    until(lambda: machine.off == 1)
    until(lambda: machine.left()[1:] == ("none", "-"))
    assert machine.shutdowns()[-1] == "-P now"


def test_where_there_is_no_shutdown_a_shell_sleeps_and_calls_poweroff(tmp_path: Path) -> None:
    machine = SelfMachine(tmp_path / "bare", without="shutdown")
    machine.boot()
    machine.run("in", RENTAL, "1")
    assert machine.left()[1] == "sh"
    until(lambda: machine.off == 1)


def test_another_rentals_agent_moves_nothing(machine: SelfMachine) -> None:
    for words in (("in", "other", "1"), ("now", "other"), ("in", RENTAL, "soon"), ("start", "other", "me", "x")):
        refused = machine.run(*words)
        assert refused.returncode == 1 and "gptctl-self:" in refused.stderr
    assert machine.off == 0 and machine.left_s() > 5000


def test_a_reboot_arms_what_was_left_less_the_time_since(machine: SelfMachine) -> None:
    machine.run("in", RENTAL, "3000")
    file = machine.folder / "lib" / "gptctl-self" / "left"
    seconds, at = map(int, file.read_text().split())
    file.write_text(f"{seconds} {at - 1000}\n")
    machine.reboot()
    assert 1990 <= machine.left_s() <= 2000
    file.write_text(f"{seconds} {at + 10_000}\n")  # the clock went back
    machine.reboot()
    assert 2990 <= machine.left_s() <= 3000
    file.write_text(f"{seconds} {at - 9000}\n")  # it was off beyond its end
    machine.reboot()
    assert 50 <= machine.left_s() <= 60


def test_a_reboot_starts_what_it_was_told_to(machine: SelfMachine, tmp_path: Path) -> None:
    import getpass

    mark = tmp_path / "started it"
    assert machine.run("start", RENTAL, getpass.getuser(), "/usr/bin/touch", str(mark)).returncode == 0
    machine.reboot()
    until(mark.exists)


def test_an_image_made_of_it_begins_anew_for_another_rental(machine: SelfMachine) -> None:
    machine.run("in", RENTAL, "600")
    machine.kill_timer()
    machine.bootcmd[0][-2:] = ["another-rental", "1800"]
    machine.boot()
    assert machine.left()[0] == "another-rental" and 1795 <= machine.left_s() <= 1800


def test_the_user_data_fits_what_ec2_takes_and_keeps_the_host_key() -> None:
    text = user_data(new_key_pair(RENTAL), Timer(RENTAL, 5400))
    assert len(text.encode()) < EC2_MOST_BYTES
    config = json.loads(text.removeprefix("#cloud-config\n"))
    assert config["ssh_deletekeys"] and config["bootcmd"][0][-2:] == [RENTAL, "5400"]
    assert user_data(None) == ""

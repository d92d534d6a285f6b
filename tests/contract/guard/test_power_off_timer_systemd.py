"""The timer of guard `self` on a whole machine with a real systemd: armed by the boot, moved, armed again by a reboot
with nobody there, and a real power-off at the end. The machine has its own processes: nothing else is switched off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.core.errors import LinkLost
from orchestrator.core.ports import Shell
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.ssh_shell import connect
from orchestrator.stages.machine.first_contact.cloud_init import Timer, user_data
from tests.support.clock.waiting import until
from tests.support.machines.namespaces import NamespaceHost
from tests.support.machines.self_machine import RENTAL


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[NamespaceHost]:
    with NamespaceHost(tmp_path / "machines", systemd=True) as host:
        yield host


def login(machine: NamespaceHost, tmp_path: Path) -> Shell:
    return connect(machine.address(), known_hosts=tmp_path / "pins" / "known_hosts")


def first_boot(shell: Shell) -> None:
    """What cloud-init runs at every boot; it has this PATH."""
    config = json.loads(user_data(None, Timer(RENTAL, 5400)).removeprefix("#cloud-config\n"))
    for argv in config["bootcmd"]:
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = shell.run(["env", "-i", path, *argv])
        assert done.code == 0, done.stderr


def timer_s(shell: Shell) -> int:
    rental, kind, seconds = shell.run(["/usr/local/sbin/gptctl-self", "left"]).stdout.decode().split()
    assert (rental, kind) == (RENTAL, "systemd")
    return int(seconds)


def is_on(machine: NamespaceHost) -> bool:
    process = machine._process
    return process is not None and process.poll() is None


def test_armed_moved_rebooted_and_powered_off(machine: NamespaceHost, tmp_path: Path) -> None:
    shell = login(machine, tmp_path)
    first_boot(shell)
    assert 5380 <= timer_s(shell) <= 5400
    listed = shell.run(["systemctl", "list-timers", "gptctl-self.timer", "--no-pager"]).stdout.decode()
    assert "gptctl-self.service" in listed
    agent = Agent(shell, "~/.gptctl", "python3")
    agent.ensure()
    assert agent.guard()["armed"], "before any agent was told"
    found = agent.arm_self("i-1", RENTAL, lease_s=1200, deadline_s=3000)
    assert found["armed"] and found["by"] == "systemd" and 1480 <= found["timer_left_s"] <= 1500
    found = agent.arm_self("i-1", RENTAL, lease_s=1200, deadline_s=900)
    assert 0 < found["timer_left_s"] <= 900, "never past the deadline"
    shell.close()
    machine.restart()
    shell = login(machine, tmp_path)
    assert 0 < timer_s(shell) <= 900, "armed by systemd itself: no cloud-init, no agent, nobody ran"
    agent = Agent(shell, "~/.gptctl", "python3")
    assert agent.guard()["armed"]
    with suppress(LinkLost):  # a slow machine is off before it answers
        agent.arm_self("i-1", RENTAL, lease_s=1200, deadline_s=3)
    shell.close()
    until(lambda: not is_on(machine))

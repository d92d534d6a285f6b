"""A link that dies without a word: the follower on the machine ends within seconds, and with it its renewals."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from orchestrator.agent.contract.names import SILENCE_S
from orchestrator.agent.system import processes
from orchestrator.core.errors import LinkLost
from orchestrator.remote.agent_client.client import Agent, Heartbeat
from orchestrator.remote.shell.ssh_shell import connect
from tests.support.clock.waiting import until
from tests.support.files.canary import command_lines
from tests.support.machines.sshd import Sshd

RUN = "r-1"


def followers(home: Path) -> list[int]:
    """The agent's follow processes on that machine."""
    following = [pid for pid, words in command_lines().items() if "follow" in words]
    return [pid for pid in following if processes.environment(pid).get("HOME") == str(home)]


def test_a_cut_link_ends_the_follower_on_the_machine(tmp_path: Path) -> None:
    with Sshd(tmp_path) as host:
        shell = connect(host.address(), known_hosts=tmp_path / "pins")
        agent = Agent(shell, "~/.gptctl")
        agent.start("prepare", RUN, "d", {"argv": [sys.executable, "-c", "import time; time.sleep(600)"]})
        with pytest.raises(LinkLost), agent.follow(RUN, "prepare", {}) as lines:
            beats, began, is_cut = 0, time.monotonic(), False
            for line in lines:
                beats += isinstance(line, Heartbeat)
                if beats >= 7 and not is_cut:
                    # Longer than the silence that is allowed: the pulses arrive.
                    assert time.monotonic() - began > SILENCE_S
                    assert len(followers(host.home)) == 1
                    host.cut()
                    is_cut = True
        until(lambda: followers(host.home) == [])
        host.heal()
        fresh = Agent(connect(host.address(), known_hosts=tmp_path / "pins"), "~/.gptctl")
        (job,) = fresh.status(RUN)["runs"][RUN]["jobs"].values()
        assert job["state"] == "running"
        shell.close()
        fresh.shell.close()

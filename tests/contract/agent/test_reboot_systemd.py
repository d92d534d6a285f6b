"""A training on a whole machine with a real systemd goes on after a power cut, with nobody there to start it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.core.ports import Shell
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.ssh_shell import connect
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import TRAINER
from tests.support.machines.namespaces import NamespaceHost

STEPS = 1500
UNITS = "/root/.config/systemd/user"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[NamespaceHost]:
    with NamespaceHost(tmp_path / "machines", systemd=True) as host:
        yield host


def login(machine: NamespaceHost, tmp_path: Path) -> Shell:
    return connect(machine.address(), known_hosts=tmp_path / "pins" / "known_hosts")


def lines(shell: Shell, file: str) -> list[dict[str, object]]:
    found = shell.run(["cat", file]).stdout.decode().splitlines(keepends=True)
    return [json.loads(line) for line in found if line.endswith("\n")]


@pytest.mark.nightly
def test_it_goes_on_after_a_power_cut_and_leaves_nothing_behind(machine: NamespaceHost, tmp_path: Path) -> None:
    shell = login(machine, tmp_path)
    agent = Agent(shell, "~/.gptctl", "python3")
    agent.ensure()
    for name, text in (("__init__.py", ""), ("__main__.py", TRAINER)):
        put = ["sh", "-c", f"mkdir -p ~/programs/trainer && cat > ~/programs/trainer/{name}"]
        assert shell.run(put, stdin=text.encode()).code == 0
    agent.start(
        "train", "r-1", "d",
        {
            "python": sys.executable, "pythonpath": "/home/gpt/programs", "ranks": 1, "gpus": [], "restarts": 3,
            "config": json.dumps({"steps": STEPS}), "on_reboot": "continue", "keep_awake": True,
        },
    )  # fmt: skip
    metrics = f"{agent.root}/runs/r-1/metrics.jsonl"
    until(lambda: len(lines(shell, metrics)) >= 5)
    until(lambda: b".service" in shell.run(["ls", f"{UNITS}/default.target.wants"]).stdout)
    until(lambda: b"gptctl" in shell.run(["systemd-inhibit", "--list", "--no-pager"]).stdout)
    shell.close()
    seen = machine.disk / "up" / metrics.lstrip("/")
    before = seen.read_text().count("\n")
    machine.restart()
    until(lambda: seen.read_text().count("\n") > before + 1)  # nobody has logged in
    shell = login(machine, tmp_path)
    agent = Agent(shell, "~/.gptctl", "python3")
    until(lambda: b"gptctl" in shell.run(["systemd-inhibit", "--list", "--no-pager"]).stdout)
    until(lambda: agent.status("r-1")["runs"]["r-1"]["jobs"]["train"]["state"] == "ended")
    train = agent.status("r-1")["runs"]["r-1"]
    ended = train["jobs"]["train"]["exit"]
    assert ended is not None and ended["outcome"] == "finished" and train["jobs"]["train"]["starts"] == 2
    assert [each["reason"] for each in train["deaths"]] == ["the machine was rebooted"]
    until(lambda: not shell.run(["ls", UNITS]).stdout.replace(b"default.target.wants", b"").strip())
    until(lambda: b"gptctl" not in shell.run(["systemd-inhibit", "--list", "--no-pager"]).stdout)
    shell.close()

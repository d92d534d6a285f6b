"""A machine's sshd gets a new host key while it runs: a real sshd, and pins that survive every half-way state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.core.errors import HostKeyChanged
from orchestrator.core.ports import Shell
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.known_hosts import HostKey, pinned, repin
from orchestrator.remote.shell.ssh_shell import connect
from tests.support.clock.waiting import until
from tests.support.machines.sshd import Sshd

Open = Callable[..., Shell]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path) as host:
        yield host


@pytest.fixture
def open_shell(box: Sshd, tmp_path: Path) -> Iterator[Open]:
    shells: list[Shell] = []

    def open_it(*keys: HostKey) -> Shell:
        pins = tmp_path / "pins"
        repin(pins, box.identity, keys)
        shells.append(connect(box.address(vouched=False), known_hosts=pins))
        return shells[-1]

    yield open_it
    for shell in shells:
        shell.close()


def key_of(line: str) -> HostKey:
    return HostKey(*line.split()[:2])


def current(box: Sshd) -> HostKey:
    return key_of((box.folder / "hostkey.pub").read_text())


def shows(open_shell: Open, key: HostKey) -> bool:
    try:
        open_shell(key)
    except HostKeyChanged:
        return False
    return True


def test_the_key_is_made_there_shown_after_install_and_sessions_live_on(box: Sshd, open_shell: Open) -> None:
    old = current(box)
    shell = open_shell(old)
    agent = Agent(shell, "~/.gptctl")
    made = agent.host_key(install=False)
    new = key_of(made["public"])
    assert made["changeable"] and new != old and new.kind == "ssh-ed25519"
    assert agent.host_key(install=False) == made
    assert shows(open_shell, old) and not shows(open_shell, new)

    installed = agent.host_key(install=True)
    assert installed == made
    until(lambda: shows(open_shell, new))
    assert not shows(open_shell, old)
    assert shell.run(["echo", "alive"]).stdout == b"alive\n"
    assert current(box) == new
    assert sorted(path.name for path in box.folder.glob("hostkey*")) == ["hostkey", "hostkey.pub"]
    assert (box.folder / "hostkey").stat().st_mode & 0o077 == 0


def test_with_both_keys_pinned_either_is_let_in_and_a_third_is_not(box: Sshd, open_shell: Open, tmp_path: Path) -> None:
    old = current(box)
    agent = Agent(open_shell(old), "~/.gptctl")
    new = key_of(agent.host_key(install=False)["public"])
    for order in ((old, new), (new, old)):
        open_shell(*order)
    agent.host_key(install=True)
    until(lambda: shows(open_shell, new))
    for order in ((old, new), (new, old)):
        open_shell(*order)
    box.restart(new_host_key=True)
    with pytest.raises(HostKeyChanged) as refused:
        open_shell(old, new)
    assert old.fingerprint in refused.value.message and new.fingerprint in refused.value.message
    assert set(pinned(tmp_path / "pins", box.identity)) == {old, new}


def test_half_a_key_left_by_a_crash_is_made_again(box: Sshd, open_shell: Open) -> None:
    agent = Agent(open_shell(current(box)), "~/.gptctl")
    (box.folder / "hostkey.gptctl-next").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n")
    (box.folder / "hostkey.gptctl-next").chmod(0o600)
    new = key_of(agent.host_key(install=False)["public"])
    agent.host_key(install=True)
    until(lambda: shows(open_shell, new))
    assert current(box) == new


def test_installing_without_a_staged_key_changes_nothing(box: Sshd, open_shell: Open) -> None:
    old = current(box)
    answer = Agent(open_shell(old), "~/.gptctl").host_key(install=True)
    assert not answer["changeable"] and answer["why"]
    assert current(box) == old and shows(open_shell, old)


def test_a_machine_that_does_not_allow_it_says_why(box: Sshd, open_shell: Open) -> None:
    agent = Agent(open_shell(current(box)), "~/.gptctl")
    (box.folder / "hostkey.pub").unlink()
    answer = agent.host_key(install=False)
    assert not answer["changeable"] and "no ssh-ed25519 host key" in answer["why"]


def test_other_machines_pins_are_left_alone(tmp_path: Path) -> None:
    file, one, two = tmp_path / "pins", HostKey("ssh-ed25519", "AAAA"), HostKey("ssh-ed25519", "BBBB")
    repin(file, "i-1", [one])
    repin(file, "i-2", [two, two])
    repin(file, "i-1", [one, two])
    assert (pinned(file, "i-1"), pinned(file, "i-2")) == ((one, two), (two,))
    repin(file, "i-1", [])
    assert (pinned(file, "i-1"), pinned(file, "i-2")) == ((), (two,))
    assert file.stat().st_mode & 0o777 == 0o600

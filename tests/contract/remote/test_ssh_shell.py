"""What only SSH promises: who is talked to, through which of the user's settings, and what a dead link looks like."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from orchestrator.core.errors import HostKeyChanged, HostKeyUnknown, LinkLost, Unreachable, UserError
from orchestrator.core.ports import Address
from orchestrator.remote.shell.ssh_shell import SshShell, connect
from orchestrator.remote.transfer.transfer import pull_file, push_file
from tests.contract.remote.test_transfer import a_file, entry
from tests.support.clock.waiting import PATIENCE
from tests.support.machines.sshd import Sshd, make_key

NOTICED_WITHIN_S = 10.0


@pytest.fixture
def pins(gptctl_home: Path) -> Path:
    return gptctl_home / "known_hosts"


def seen_by(host: Sshd) -> str:
    return (host.folder / "sshd.log").read_text()


def test_what_a_login_shell_prints_is_shown_and_never_parsed(machines: Callable[..., Sshd], tmp_path: Path) -> None:
    talkative = machines("talkative", login_shell="/bin/bash")
    (talkative.home / ".bashrc").write_text("echo Welcome to rig; echo '{}'; trap 'echo bye' EXIT\n")
    big = tmp_path / "big"
    big.write_bytes(b"abc" * 500_000)
    shell = connect(talkative.address(), known_hosts=tmp_path / "pins")
    try:
        assert shell.run(["sh", "-c", "exit 3"]).code == 3
        assert shell.greeting().startswith("Welcome to rig | {}")
        push_file(shell, big, "~/big")
        for name, get in (("small", partial(shell.get, "big")), ("pulled", partial(pulled, shell, big))):
            get(tmp_path / name)
            assert (tmp_path / name).read_bytes() == big.read_bytes()
    finally:
        shell.close()


def pulled(shell: SshShell, original: Path, local: Path) -> None:
    digest = hashlib.sha256(original.read_bytes()).hexdigest()
    pull_file(shell, "big", local, size_bytes=original.stat().st_size, sha256=digest)


def test_first_contact_without_a_voucher_is_refused_before_the_user_name(box: Sshd, pins: Path) -> None:
    with pytest.raises(HostKeyUnknown, match=re.escape(box.fingerprint)) as caught:
        connect(box.address(vouched=False), known_hosts=pins)
    assert "--accept-new-host-key" in caught.value.hint and box.fingerprint in caught.value.hint
    assert not pins.exists()
    assert "user root" not in seen_by(box) and "authenticating" not in seen_by(box)


def test_a_fingerprint_of_another_key_is_a_hard_stop(box: Sshd, pins: Path) -> None:
    wrong = "SHA256:" + "A" * 43
    with pytest.raises(HostKeyChanged, match=wrong) as caught:
        connect(replace(box.address(), fingerprint=wrong), known_hosts=pins)
    assert box.fingerprint in caught.value.message
    with pytest.raises(HostKeyChanged):
        connect(replace(box.address(), fingerprint=wrong), known_hosts=pins, accept_new=True)
    assert not pins.exists()
    connect(box.address(), known_hosts=pins).close()
    with pytest.raises(HostKeyChanged, match=wrong) as caught:
        connect(replace(box.address(), fingerprint=wrong), known_hosts=pins)
    assert box.fingerprint in caught.value.message


@pytest.mark.parametrize("voucher", ["fingerprint", "accepted", "known_hosts", "hashed known_hosts"])
def test_a_vouched_key_is_pinned_and_then_enough(box: Sshd, pins: Path, tmp_path: Path, voucher: str) -> None:
    mine = tmp_path / "my_known_hosts"
    if "known_hosts" in voucher:
        mine.write_text(box.known_hosts_line())
    if "hashed" in voucher:
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(mine)], check=True, capture_output=True)
    address = box.address(vouched=voucher == "fingerprint")
    connect(address, known_hosts=pins, user_known_hosts=mine, accept_new=voucher == "accepted").close()
    pinned = box.known_hosts_line().replace(f"[{box.host}]:{box.port}", box.identity)
    assert pins.read_text() == pinned
    assert stat.S_IMODE(pins.stat().st_mode) == 0o600
    shell = connect(box.address(vouched=False), known_hosts=pins, user_known_hosts=tmp_path / "none")
    assert shell.run(["echo", "hello"]).stdout == b"hello\n"
    shell.close()


def test_a_changed_key_stops_everything_and_shows_both(box: Sshd, pins: Path, tmp_path: Path) -> None:
    shell = connect(box.address(), known_hosts=pins)
    openssh = shell.openssh()
    shell.close()
    before = box.fingerprint
    box.restart(new_host_key=True)
    (box.folder / "sshd.log").write_text("")
    for accept_new in (False, True):
        with pytest.raises(HostKeyChanged) as caught:
            connect(replace(box.address(), fingerprint=None), known_hosts=pins, accept_new=accept_new)
        assert before in caught.value.message and box.fingerprint in caught.value.message
        assert str(pins) in caught.value.hint
    assert openssh is not None
    refused = subprocess.run([*openssh, "touch canary"], capture_output=True, timeout=120, check=False)
    assert refused.returncode == 255
    assert not (box.home / "canary").exists()
    assert "Accepted" not in seen_by(box) and "user root" not in seen_by(box)


def test_a_key_the_users_own_known_hosts_contradicts_is_a_hard_stop(box: Sshd, pins: Path, tmp_path: Path) -> None:
    mine = tmp_path / "my_known_hosts"
    mine.write_text(box.known_hosts_line())
    box.restart(new_host_key=True)
    with pytest.raises(HostKeyChanged) as caught:
        connect(box.address(vouched=False), known_hosts=pins, user_known_hosts=mine, accept_new=True)
    assert str(mine) in caught.value.hint


def test_the_same_address_with_another_identity_is_another_machine(box: Sshd, pins: Path) -> None:
    connect(replace(box.address(), identity="i-0aaa"), known_hosts=pins).close()
    box.restart(new_host_key=True)
    connect(replace(box.address(), identity="i-0bbb"), known_hosts=pins).close()
    assert [line.split()[0] for line in pins.read_text().splitlines()] == ["i-0aaa", "i-0bbb"]
    with pytest.raises(HostKeyChanged):
        connect(replace(box.address(), identity="i-0aaa"), known_hosts=pins)


def test_a_machine_that_moved_keeps_its_identity(box: Sshd, pins: Path) -> None:
    connect(replace(box.address(), identity="i-0aaa"), known_hosts=pins).close()
    box.port = free_port(box.host)
    box.rewrite_config()
    box.restart()
    shell = connect(replace(box.address(vouched=False), identity="i-0aaa"), known_hosts=pins)
    assert shell.run(["true"]).code == 0
    shell.close()


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def user_config(text: str) -> Path:
    """Write ~/.ssh/config of the test's own HOME."""
    config = Path.home() / ".ssh" / "config"
    config.parent.mkdir(mode=0o700, exist_ok=True)
    config.write_text(text)
    return config


def test_the_users_ssh_config_says_address_port_user_and_key(box: Sshd, pins: Path) -> None:
    user_config(
        f"Host nick\n  HostName {box.host}\n  Port {box.port}\n  User {box.user}\n  IdentityFile {box.key_file}\n"
    )
    shell = connect(Address(host="nick", identity="[nick]:22", fingerprint=box.fingerprint), known_hosts=pins)
    assert shell.run(["echo", "hello"]).stdout == b"hello\n"
    assert bulk(shell, "pwd") == f"{box.home}\n"
    shell.close()


def test_proxy_jump_is_followed_by_the_shell_and_by_bulk_transfer(
    machines: Callable[..., Sshd], pins: Path, tmp_path: Path
) -> None:
    gate, inner = machines("gate"), machines("inner")
    user_config(
        f"Host gate\n  HostName {gate.host}\n  Port {gate.port}\n  User {gate.user}\n  IdentityFile {gate.key_file}\n"
        f"Host inner\n  HostName {inner.host}\n  Port {inner.port}\n  ProxyJump gate\n"
    )
    (Path.home() / ".ssh" / "known_hosts").write_text(gate.known_hosts_line())
    address = replace(inner.address(), host="inner", port=None)
    shell = connect(address, known_hosts=pins)
    big = a_file(tmp_path / "big", 5 << 20)
    assert push_file(shell, big, "arrived").way == "ranges"
    assert entry(inner.home / "arrived") == entry(big)
    shell.close()
    assert gate.connections() >= 2, "every connection went through the gate"
    gate.stop()
    with pytest.raises(Unreachable, match=gate.host):
        connect(address, known_hosts=pins)


def test_a_jump_nobody_vouches_for_is_refused(machines: Callable[..., Sshd], pins: Path) -> None:
    gate, inner = machines("gate"), machines("inner")
    user_config(f"Host {inner.host}\n  ProxyJump {gate.user}@{gate.host}:{gate.port}\n")
    with pytest.raises(HostKeyUnknown, match=re.escape(gate.fingerprint)):
        connect(inner.address(), known_hosts=pins)


@pytest.fixture
def ssh_agent(monkeypatch: pytest.MonkeyPatch, gptctl_home: Path) -> Iterator[None]:
    """An agent of the test's own, empty."""
    said = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    settings = dict(re.findall(r"(SSH_\w+)=([^;]+)", said))
    monkeypatch.setenv("SSH_AUTH_SOCK", settings["SSH_AUTH_SOCK"])
    yield
    os.kill(int(settings["SSH_AGENT_PID"]), signal.SIGTERM)


@pytest.mark.usefixtures("ssh_agent")
def test_a_hostile_ssh_config_runs_nothing_and_forwards_nothing(box: Sshd, pins: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hostile = f"Host *\n  ForwardAgent yes\n  PermitLocalCommand yes\n  LocalCommand touch {canary}\n"
    user_config(hostile + "  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n  SendEnv *\n")
    shell = connect(box.address(), known_hosts=pins)
    assert shell.run(["printenv", "SSH_AUTH_SOCK"]).stdout == b"\n"
    assert bulk(shell, "printenv SSH_AUTH_SOCK") == "\n"
    shell.close()
    assert not canary.exists()


@pytest.mark.usefixtures("ssh_agent")
def test_a_key_that_only_the_agent_holds_opens_both_ways(box: Sshd, pins: Path) -> None:
    subprocess.run(["ssh-add", "-q", str(box.key_file)], check=True)
    box.key_file.unlink()
    shell = connect(replace(box.address(), key_file=None), known_hosts=pins)
    assert shell.run(["echo", "hello"]).stdout == b"hello\n"
    assert bulk(shell, "echo hello") == "hello\n"
    shell.close()


def test_a_key_with_a_passphrase_says_what_to_do(box: Sshd, pins: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(box.key_file)], check=True, capture_output=True)
    with pytest.raises(Unreachable) as caught:
        connect(box.address(), known_hosts=pins)
    assert "ssh-add" in caught.value.hint


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_a_machine_with_several_keys_shows_the_one_the_user_knows(
    machines: Callable[..., Sshd], pins: Path, tmp_path: Path, kind: str
) -> None:
    mine = tmp_path / "my_known_hosts"
    for other in ("rsa", "ecdsa"):
        make_key(tmp_path / other, kind=other)
    host = machines("box", options="".join(f"HostKey {tmp_path / other}\n" for other in ("rsa", "ecdsa")))
    public = tmp_path / f"{kind}.pub" if kind != "ed25519" else host.folder / "hostkey.pub"
    name, key, *_ = public.read_text().split()
    mine.write_text(f"{host.identity} {name} {key}\n")
    shell = connect(host.address(vouched=False), known_hosts=pins, user_known_hosts=mine)
    assert pins.read_text() == f"{host.identity} {name} {key}\n"
    assert bulk(shell, "echo hello") == "hello\n"
    shell.close()


def bulk(shell: SshShell, command: str) -> str:
    """What the ssh of bulk transfer gets for a command."""
    argv = shell.openssh()
    assert argv is not None
    return subprocess.run([*argv, command], capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("host", ["-oProxyCommand=touch canary", "", "a b", "a\nb"])
def test_a_host_that_is_no_name_is_refused(gptctl_home: Path, host: str) -> None:
    with pytest.raises(UserError, match="not a host name"):
        connect(Address(host=host, identity="x"), known_hosts=gptctl_home / "known_hosts")


def test_environment_values_travel_on_stdin_byte_for_byte(shell: SshShell) -> None:
    """`env=` of Fabric would execute these; nothing of ours uses it, and stdin carries any byte."""
    value = b"x; touch canary #'\"$(touch canary)\n\x00\xff"
    assert shell.run(["cat"], stdin=value).stdout == value
    assert b"canary" not in shell.run(["ls"]).stdout


def test_nobody_there_refused_silent_and_wrong_key_are_unreachable(box: Sshd, pins: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    with pytest.raises(Unreachable, match="accepts none of our keys"):
        connect(replace(box.address(), key_file=str(other)), known_hosts=pins)
    with pytest.raises(UserError, match="does not exist"):
        connect(replace(box.address(), key_file=str(tmp_path / "no-key")), known_hosts=pins)
    box.stop()
    with pytest.raises(Unreachable, match="refused"):
        connect(box.address(), known_hosts=pins)
    with socket.socket() as mute:
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        mute.bind((box.host, box.port))
        mute.listen()
        started = time.monotonic()
        with pytest.raises(Unreachable, match="no answer"):
            connect(box.address(), known_hosts=pins, connect_deadline_s=1)
        assert time.monotonic() - started < PATIENCE * 5
    with pytest.raises(Unreachable):
        connect(replace(box.address(), host="no-such-host.invalid"), known_hosts=pins)


def test_a_cut_link_is_noticed_by_a_waiting_command_and_by_a_silent_stream(box: Sshd, shell: SshShell) -> None:
    with shell.lines(["sh", "-c", "echo ready; sleep 60"], silence_s=60) as lines:
        assert next(lines) == b"ready"
        box.cut()
        started = time.monotonic()
        with pytest.raises(LinkLost):
            next(lines)
        assert time.monotonic() - started < PATIENCE * NOTICED_WITHIN_S
    with pytest.raises(LinkLost):
        shell.run(["true"])
    with pytest.raises(Unreachable):
        connect(box.address(), known_hosts=box.folder / "pins", connect_deadline_s=1)
    box.heal()
    again = connect(box.address(), known_hosts=box.folder / "pins")
    assert again.run(["echo", "back"]).stdout == b"back\n"
    again.close()


def test_a_killed_sshd_is_a_lost_link_at_once(box: Sshd, shell: SshShell) -> None:
    threading.Timer(0.3, box.kill).start()
    with pytest.raises(LinkLost, match="broke"):
        shell.run(["sleep", "60"], deadline_s=60)

"""Logins that `ssh` accepts and paramiko does not: OpenSSH makes the connection then. And sshd's limits set low."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.core.errors import HostKeyChanged, LinkLost, MachineUnfit, Unreachable
from orchestrator.core.ports import Address
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.ssh_shell import SshShell, connect
from orchestrator.remote.transfer.transfer import push_file
from tests.support.clock.waiting import until
from tests.support.machines.kerberos import Realm
from tests.support.machines.security_key import SecurityKeyAgent
from tests.support.machines.sshd import Sshd

PIPE = (
    "import os, select, socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])));"
    "exec('while 1:\\n for r in select.select([0, s], [], [])[0]:\\n"
    "  d = os.read(r if r == 0 else s.fileno(), 65536)\\n  d or sys.exit()\\n"
    "  s.sendall(d) if r == 0 else os.write(1, d)')"
)


@pytest.fixture
def config(gptctl_home: Path) -> Path:
    folder = Path.home() / ".ssh"
    folder.mkdir(mode=0o700)
    return folder / "config"


@pytest.fixture
def join(box: Sshd, tmp_path: Path) -> Iterator[Callable[..., SshShell]]:
    """`join(host=..., key_file=...)` connects to the box; all connections end with the test."""
    with ExitStack() as stack:

        def connected(**fields: object) -> SshShell:
            address: Address = replace(box.address(), **fields)  # type: ignore[arg-type]
            shell = connect(address, known_hosts=tmp_path / "pins")
            stack.callback(shell.close)
            return shell

        yield connected


def works(shell: SshShell, folder: Path) -> bool:
    """Commands, the agent, files through the connection and files beside it."""
    assert shell.run(["sh", "-c", "cat; exit 3"], stdin=b"x").code == 3
    assert Agent(shell, "~/.gptctl").facts()["writable"]
    big = folder / "big"
    big.write_bytes(b"abc" * 500_000)
    assert push_file(shell, big, "~/big").way == "ranges"
    shell.get("big", folder / "again")
    assert (folder / "again").read_bytes() == big.read_bytes()
    with shell.lines(["sh", "-c", "echo one; echo two"]) as lines:
        return list(lines) == [b"one", b"two"]


def test_a_key_in_pkcs8(join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path) -> None:
    key = tmp_path / "pkcs8"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-m", "PKCS8", "-N", "", "-f", str(key)], check=True)
    (box.folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    assert works(join(key_file=str(key)), tmp_path)


def test_the_agent_that_the_config_names(
    join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path
) -> None:
    socket = tmp_path / "agent.sock"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL) as agent:
        until(socket.exists)
        env = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", str(box.key_file)], env=env, check=True)
        config.write_text(f"Host {box.host}\n  IdentityAgent {socket}\n")
        assert works(join(key_file=None), tmp_path)
        agent.terminate()


@pytest.mark.parametrize("place", ["CertificateFile", "beside the key", "expired"])
def test_a_certificate(join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path, place: str) -> None:
    authority, key = tmp_path / "ca", tmp_path / "certified"
    for file in (authority, key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    valid = "20200101:20200102" if place == "expired" else "+1h"
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "me", "-n", box.user, "-V", valid, f"{key}.pub"]
    subprocess.run(sign, check=True)
    (box.folder / "authorized_keys").write_text(f"cert-authority {authority.with_suffix('.pub').read_text()}")
    if place == "CertificateFile":
        (tmp_path / "certified-cert.pub").rename(tmp_path / "elsewhere.pub")
        config.write_text(f"Host {box.host}\n  CertificateFile {tmp_path}/elsewhere.pub\n  IdentityFile {key}\n")
    if place == "expired":
        with pytest.raises(Unreachable, match=r"accepts none of our keys .*certified"):
            join(key_file=str(key))
        return
    works(join(key_file=None if place == "CertificateFile" else str(key)), tmp_path)


def test_kerberos(machines: Callable[..., Sshd], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    realm = Realm(tmp_path / "realm", user=getpass.getuser())
    gssapi = "GSSAPIAuthentication yes\nGSSAPIStrictAcceptorCheck no\n"
    box = machines(options=gssapi, service_env=realm.env)
    (box.folder / "authorized_keys").write_text("")
    config.write_text(f"Host {box.host}\n  GSSAPIAuthentication yes\n")
    for name in ("KRB5_CONFIG", "KRB5CCNAME"):
        monkeypatch.setenv(name, realm.env[name])
    address = replace(box.address(), key_file=None)
    with realm:
        realm.serve(f"host/{box.host}")
        with pytest.raises(Unreachable, match="Permission denied") as refused:
            connect(address, known_hosts=tmp_path / "pins")
        assert "kinit" in str(refused.value.hint)
        realm.log_in()
        with closing(connect(address, known_hosts=tmp_path / "pins")) as shell:
            assert works(shell, tmp_path)


def test_a_security_key_in_an_agent(join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path) -> None:
    with SecurityKeyAgent(tmp_path / "agent.sock") as token:
        (box.folder / "authorized_keys").write_text(token.public)
        config.write_text(f"Host {box.host}\n  IdentityAgent {tmp_path}/agent.sock\n")
        assert works(join(key_file=None), tmp_path)
        assert token.signed <= 2  # a token is touched for each


def test_a_proxy_command(join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.py"
    pipe.write_text(PIPE)
    config.write_text(f"Host rig\n  HostName {box.host}\n  ProxyCommand {sys.executable} {pipe} %h %p\n")
    assert works(join(host="rig"), tmp_path)


def test_what_ssh_refuses_too_is_told_in_its_words(
    join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path
) -> None:
    (box.folder / "authorized_keys").write_text("")
    with pytest.raises(Unreachable, match=r"accepts none of our keys \(.*userkey\).*ssh: .*Permission denied"):
        join()


def test_the_host_key_is_compared_before_openssh_is_asked(
    join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path
) -> None:
    (box.folder / "authorized_keys").write_text("")
    with pytest.raises(HostKeyChanged):
        join(fingerprint="SHA256:" + "A" * 43)
    assert "Accepted" not in (box.folder / "sshd.log").read_text()


def test_a_link_that_openssh_made_breaks_as_any_other(
    join: Callable[..., SshShell], box: Sshd, config: Path, tmp_path: Path
) -> None:
    with SecurityKeyAgent(tmp_path / "agent.sock") as token:
        (box.folder / "authorized_keys").write_text(token.public)
        config.write_text(f"Host {box.host}\n  IdentityAgent {tmp_path}/agent.sock\n")
        shell = join(key_file=None)
        box.kill()
        with pytest.raises(LinkLost):
            shell.run(["true"])


KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.core.ports import Address
from orchestrator.remote.shell.ssh_shell import connect
host, port, user, pins = sys.argv[1:]
shell = connect(Address(host, int(port), user, identity=f"[{host}]:{port}"), known_hosts=Path(pins), accept_new=True)
assert shell.run(["true"]).code == 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_gptctl_that_is_killed_leaves_no_connection_of_openssh(box: Sshd, config: Path, tmp_path: Path) -> None:
    with SecurityKeyAgent(tmp_path / "agent.sock") as token:
        (box.folder / "authorized_keys").write_text(token.public)
        config.write_text(f"Host {box.host}\n  IdentityAgent {tmp_path}/agent.sock\n")
        pins = str(tmp_path / "pins of the killed")
        argv = [sys.executable, "-c", KILLED, box.host, str(box.port), box.user, pins]
        killed = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert killed.returncode == -9, killed.stderr
        until(lambda: pins not in subprocess.check_output(["ps", "-ww", "-eo", "args"], text=True))


def test_an_sshd_with_its_limits_set_low(machines: Callable[..., Sshd], gptctl_home: Path, tmp_path: Path) -> None:
    low = machines("low", limits="MaxStartups 1\nMaxSessions 1\n")
    shell = connect(low.address(), known_hosts=tmp_path / "pins")
    with shell.lines(["sh", "-c", "echo begun; cat"], pulse_s=1.0) as lines:
        assert next(lines) == b"begun"
        assert shell.run(["echo", "beside it"]).stdout == b"beside it\n"
    assert works(shell, tmp_path)
    shell.close()


@pytest.mark.parametrize(
    ("login", "words"),
    [
        ('echo \'Please login as the user "ubuntu" rather than the user "root".\'; exit 142', 'the user "ubuntu"'),
        ("echo This account is currently not available.; exit 1", "not available"),
        ("exec /usr/lib/openssh/sftp-server", "nothing readable"),
    ],
)
def test_a_login_that_runs_no_command(
    login: str, words: str, box: Sshd, join: Callable[..., SshShell], gptctl_home: Path
) -> None:
    (box.folder / "login").write_text(f"#!/bin/sh\n{login}\n")
    with pytest.raises(MachineUnfit, match=words):
        join().run(["true"])

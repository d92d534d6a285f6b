"""Real machines to test against: an sshd of its own for each, reached over real SSH. No mock of Fabric or paramiko.

`Sshd` is the quick kind: a process on a loopback address of its own (127.0.0.2 and up), with its own host key, a clean
home folder for every login and no shell start-up files. It works for any user; cutting its link needs root. Traffic
never leaves the machine.

    with Sshd(tmp_path) as host:
        shell = connect(host.address(), known_hosts=tmp_path / "pins")
        host.cut(); host.heal(); host.kill(); host.restart(new_host_key=True)
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, Self

from orchestrator.agent.system import memory_files
from orchestrator.core.ports import Address

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or "/usr/sbin/sshd"
CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UP_WITHIN_S = 60.0
SMALL_DISK_BYTES = 1 << 20

LIMITS = "MaxStartups 100:30:200\nMaxSessions 100\n"
CONFIG = """
Port {port}
ListenAddress {address}
HostKey {folder}/hostkey
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
{limits}PrintMotd no
Subsystem sftp internal-sftp
SetEnv HOME={folder}/home
ForceCommand {folder}/login
"""

# The forced command gives each session a clean home: the user's real one has start-up files, keys and a ~/.gptctl.
LOGIN = """#!/bin/sh
cd {home} || exit
exec env -i HOME={home} USER={user} LOGNAME={user} SHELL={shell} PATH={path} LANG=C.UTF-8 {extra} \\
    SSH_CLIENT="$SSH_CLIENT" SSH_CONNECTION="$SSH_CONNECTION" SSH_AUTH_SOCK="$SSH_AUTH_SOCK" \\
    {shell} -c "${{SSH_ORIGINAL_COMMAND:-exec /bin/sh -i}}"
"""

_addresses = iter(range(2, 250))
_addresses_lock = threading.Lock()


def free_address() -> tuple[str, int]:
    """A loopback address and port of our own: the pid and a counter make 127.x.y.z, the kernel picks the port."""
    with _addresses_lock:
        last = next(_addresses)
    pid = os.getpid()
    for address in (f"127.{1 + pid // 250 % 250}.{1 + pid % 250}.{last}", "127.0.0.1"):  # macOS has only the second
        with socket.socket() as probe:
            if _binds(probe, address):
                return address, int(probe.getsockname()[1])
    raise RuntimeError("no loopback address to be had")


def _binds(probe: socket.socket, address: str) -> bool:
    try:
        probe.bind((address, 0))
    except OSError:
        return False
    return True


class Sshd:
    """One sshd; a context manager. Everything it makes lies in `folder`, the login's home folder in `folder/home`."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "box",
        path: str = CLEAN_PATH,
        env: Sequence[str] = (),
        options: str = "",
        login_shell: str = "/bin/sh",
        limits: str = LIMITS,
        service_env: Mapping[str, str] = MappingProxyType({}),
        user: str | None = None,
    ) -> None:
        """user: whose login it is; absent: ours. Another's needs root, and a folder that the account can enter."""
        self.folder = folder / name
        self.name = name
        self.home = self.folder / "home"
        self.user = user or getpass.getuser()
        self.host, self.port = free_address()
        self.key_file = self.folder / "userkey"
        self._login = LOGIN.format(home=self.home, user=self.user, path=path, shell=login_shell, extra=shlex.join(env))
        self._options, self._limits = options, limits
        self._service_env = {"PATH": CLEAN_PATH, **service_env}
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions: list[int] = []
        self._rules: list[list[str]] = []

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, mode=0o700)
        shutil.chown(self.home, self.user)
        for key in ("hostkey", "userkey"):
            make_key(self.folder / key)
        shutil.copy(self.folder / "userkey.pub", self.folder / "authorized_keys")
        login = self.folder / "login"
        login.write_text(self._login)
        login.chmod(0o755)
        self.rewrite_config()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self.power_off()
        self.lose_memory()

    def rewrite_config(self) -> None:
        """sshd's settings from ours; after a change of `port`, restart."""
        config = (
            CONFIG.format(port=self.port, address=self.host, folder=self.folder, limits=self._limits) + self._options
        )
        (self.folder / "sshd_config").write_text(config)

    def start(self) -> None:
        """Start sshd and wait until it listens. A session that is being killed may hold the port a little longer."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # "Missing privilege separation directory" otherwise
        until = time.monotonic() + UP_WITHIN_S
        while not self._listens(said := self._start_once(until)):
            if "already in use" not in said or time.monotonic() > until:
                raise RuntimeError(f"sshd did not start: {said or 'no log'}")
            time.sleep(0.05)

    def _start_once(self, until: float) -> str:
        """What it says in its log until it listens or has ended. No connection is made: one would be a session."""
        log = self.folder / "sshd.log"
        before = log.stat().st_size if log.exists() else 0
        self._process = subprocess.Popen(
            [*dies_with_us(), SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(log)],
            env=self._service_env,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        said = ""
        while time.monotonic() < until and not self._listens(said):
            ended = self._process.poll() is not None
            said = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
            if ended:
                break
            time.sleep(0.01)
        return said

    def _listens(self, said: str) -> bool:
        return f"Server listening on {self.host} port {self.port}" in said

    def stop(self) -> None:
        """No new connections; those that are open live on, as with a stopped sshd service."""
        if self._process is not None:
            self._sessions += descendants(self._process.pid)
            self._process.kill()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """sshd and every session of it, at once. What detached itself (setsid, reparented) lives on.

        From the top down: a session that outlives its command by a moment would still report how that ended."""
        self.stop()
        while self._sessions:
            kill(self._sessions.pop(0))

    def power_off(self) -> None:
        """Everything that ever started here, detached jobs included."""
        self.kill()
        while found := self.processes():
            for pid in found:
                kill(pid)

    def lose_memory(self) -> None:
        """What jobs keep in memory, all machines of this kind in one folder; a real machine's goes with its power."""
        for folder in self.home.glob(".gptctl/jobs/*/*"):
            for kind in memory_files.KINDS:
                memory_files.forget(kind, str(folder))

    def processes(self) -> list[int]:
        """What ever started here and lives, detached jobs included."""
        mark = f"HOME={self.home}".encode()
        return [pid for pid in _pids() if mark in _proc(pid, "environ").split(b"\0") and not _is_zombie(pid)]

    def restart(self, *, new_host_key: bool = False) -> None:
        """Come up again on the same address and port, as a reboot does, or with another key, as a stranger would."""
        self.power_off()
        if new_host_key:
            make_key(self.folder / "hostkey")
        self.start()

    def cut(self) -> None:
        """Drop every packet of this machine's port, both ways, without a word to either side. Needs root."""
        for direction, side in (("INPUT", "--dport"), ("INPUT", "--sport")):
            rule = [direction, "-p", "tcp", "-d" if side == "--dport" else "-s", self.host, side, str(self.port)]
            subprocess.run(["iptables", "-w", "-I", *rule, "-j", "DROP"], check=True, timeout=120)
            self._rules.append(rule)

    def heal(self) -> None:
        """Take the rules of `cut` away."""
        while self._rules:
            rule = self._rules.pop()
            subprocess.run(["iptables", "-w", "-D", *rule, "-j", "DROP"], check=True, timeout=120)

    @property
    def identity(self) -> str:
        return f"[{self.host}]:{self.port}"

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.folder / "hostkey.pub")

    def address(self, *, vouched: bool = True) -> Address:
        """How to reach it. Not vouched: nothing says what its host key is."""
        return address_of(self, vouched=vouched)

    def inventory_entry(self, *, machine: str = "2xCPU", extra: str = "") -> str:
        """A [hosts.NAME] table for inventory.toml. No hook for a reboot: its user is this computer's."""
        return inventory_entry_of(self, machine_type=machine, extra='on_reboot = "stop"\n' + extra)

    def known_hosts_line(self) -> str:
        """This machine as the user's own known_hosts would have it."""
        kind, key, *_ = (self.folder / "hostkey.pub").read_text().split()
        return f"[{self.host}]:{self.port} {kind} {key}\n"

    def connections(self) -> int:
        """How many sessions its log has seen authenticated."""
        log = self.folder / "sshd.log"
        return log.read_text().count("Accepted publickey") if log.exists() else 0


class Machine(Protocol):
    """What every kind of test machine has."""

    name: str
    host: str
    port: int
    user: str
    key_file: Path

    @property
    def identity(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


def address_of(machine: Machine, *, vouched: bool) -> Address:
    return Address(
        host=machine.host,
        port=machine.port,
        user=machine.user,
        key_file=str(machine.key_file),
        identity=machine.identity,
        fingerprint=machine.fingerprint if vouched else None,
    )


def inventory_entry_of(machine: Machine, *, machine_type: str, extra: str) -> str:
    return (
        f'[hosts.{machine.name}]\nprovider = "ssh"\nmachine = "{machine_type}"\naddress = "{machine.host}"\n'
        f'port = {machine.port}\nuser = "{machine.user}"\nssh_key = "{machine.key_file}"\n'
        f'fingerprint = "{machine.fingerprint}"\n{extra}'
    )


def make_key(file: Path, *, kind: str = "ed25519") -> None:
    """A new key pair under this name, in place of an old one."""
    file.unlink(missing_ok=True)
    file.with_name(file.name + ".pub").unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(file)], check=True, timeout=120)


@contextmanager
def small_disk(folder: Path, size_bytes: int = SMALL_DISK_BYTES) -> Iterator[Path]:
    """A file system of its own with little room. Needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], check=True, timeout=120)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=120)


def dies_with_us() -> list[str]:
    """Put before a command: it is killed when the test process is, however that ends. Linux only."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def fingerprint(public_key: Path) -> str:
    """SHA256:..., in ssh-keygen's own words."""
    listing = subprocess.run(["ssh-keygen", "-lf", str(public_key)], check=True, capture_output=True, text=True)
    return listing.stdout.split()[1]


def descendants(root: int) -> list[int]:
    """Every process below this one."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        fields = _proc(pid, "stat").rpartition(b")")[2].split()
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(pid)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _proc(pid: int, file: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def _is_zombie(pid: int) -> bool:
    return _proc(pid, "stat").rpartition(b")")[2].split()[:1] == [b"Z"]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

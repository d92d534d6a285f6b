"""Whole hosts on this machine: own network, processes, host name, boot id and root file system; killable like an
instance.

The root file system is an overlay over ours, its writes on a disk of limited size. `kill` ends everything on it, also
what detached itself; `restart` boots again with the same disk. With `systemd=True` its first process is a real systemd
(user sessions, lingering, journal). Needs root. Measured: 58 ms until SSH answers, 0.64 s with systemd.

    with NamespaceHost(tmp_path, delay_s=0.020) as host:       # 40 ms round trip
        shell = connect(host.address(), known_hosts=tmp_path / "pins")
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

from orchestrator.core.ports import Address
from tests.support.files.repository import REPOSITORY
from tests.support.machines import sshd

SUPERNET = "10.196.0.0/14"
FIRST = IPv4Address("10.197.0.0")
SUBNETS = 16384
HOSTS_EACH = 127
"""So many hosts of one process have addresses that no host of the next process has."""
DISK_BYTES = 4 << 30
UP_WITHIN_S = 120.0
USER = "gpt"
CGROUPS = ("systemd", "unified", "memory", "pids", "cpu", "cpuacct")

_numbers = itertools.count()

CONFIG = """
Port 22
HostKey /etc/gpthost/hostkey
PidFile /run/sshd.pid
AuthorizedKeysFile /etc/gpthost/authorized_keys
StrictModes no
UsePAM {pam}
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
MaxStartups 100:30:200
MaxSessions 100
Subsystem sftp internal-sftp
"""

# The user has number 0 under a name of its own: a clean home folder, and everything that root may read.
PREPARE = f"""
set -e
umask 022
hostname "$NAME"
mount -t overlay overlay -o lowerdir=/,upperdir="$DISK/up",workdir="$DISK/work" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --bind "$DISK/boot_id" "$ROOT/proc/sys/kernel/random/boot_id"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"; mkdir -p "$ROOT/run/sshd"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
for ours in $OURS; do
    mkdir -p "$ROOT$ours"; mount --bind "$ours" "$ROOT$ours"; mount -o remount,bind,ro "$ROOT$ours"
done
mount -t tmpfs -o mode=755 tmpfs "$ROOT/dev"
for n in null zero full random urandom tty; do touch "$ROOT/dev/$n"; mount --bind "/dev/$n" "$ROOT/dev/$n"; done
mkdir "$ROOT/dev/pts" "$ROOT/dev/shm"
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts "$ROOT/dev/pts"
ln -s pts/ptmx "$ROOT/dev/ptmx"; ln -s /proc/self/fd "$ROOT/dev/fd"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
mkdir -p "$ROOT/home/{USER}" "$ROOT/etc/gpthost"
cp "$DISK"/keys/* "$ROOT/etc/gpthost/"
grep -q "^{USER}:" "$ROOT/etc/passwd" || echo "{USER}:*:0:0::/home/{USER}:/bin/bash" >> "$ROOT/etc/passwd"
echo "127.0.0.1 localhost $NAME" > "$ROOT/etc/hosts"; echo "$NAME" > "$ROOT/etc/hostname"
"""

PLAIN = """
exec chroot "$ROOT" env -i PATH=$PATH LANG=C.UTF-8 \\
    /usr/sbin/sshd -D -E /etc/gpthost/log -f /etc/gpthost/sshd_config
"""

SYSTEMD = """
mount -t sysfs -o ro sysfs "$ROOT/sys"; mount -t tmpfs tmpfs "$ROOT/sys/fs/cgroup"
mkdir "$ROOT/sys/fs/cgroup/systemd" "$ROOT/sys/fs/cgroup/unified"
mount -t cgroup -o none,name=systemd cgroup "$ROOT/sys/fs/cgroup/systemd"
mount -t cgroup2 cgroup2 "$ROOT/sys/fs/cgroup/unified"
units="$ROOT/etc/systemd/system"; mkdir -p "$units"
tr -d - < "$DISK/boot_id" > "$ROOT/etc/machine-id"
# A login before logind is up waits half a minute for its session.
printf '%s\\n' '[Unit]' 'After=systemd-logind.service systemd-user-sessions.service' '[Service]' \\
    'ExecStartPre=/bin/mkdir -p /run/sshd' \\
    'ExecStart=/usr/sbin/sshd -D -f /etc/gpthost/sshd_config' > "$units/hostsshd.service"
printf '%s\\n' '[Unit]' 'Requires=basic.target' 'After=basic.target' \\
    'Wants=hostsshd.service dbus.socket systemd-logind.service systemd-user-sessions.service' > "$units/gpthost.target"
ln -sfn gpthost.target "$units/default.target"
for unit in ssh systemd-udevd systemd-networkd systemd-resolved; do ln -sf /dev/null "$units/$unit.service"; done
exec chroot "$ROOT" /usr/bin/env -i container=other PATH=$PATH \\
    /lib/systemd/systemd --log-target=null --show-status=false
"""


class NamespaceHost:
    """One whole host; a context manager. The same words as sshd.Sshd."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "rented",
        delay_s: float = 0.0,
        systemd: bool = False,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        number = next(_numbers)
        subnet = FIRST + 4 * ((os.getpid() * HOSTS_EACH + number) % SUBNETS)
        self.name, self.user, self.port = name, USER, 22
        self.host, self._here = str(subnet + 2), str(subnet + 1)
        self.folder = folder / name
        self.disk = self.folder / "disk"
        self.key_file = self.folder / "userkey"
        self.netns = f"gpt{os.getpid()}n{number}"
        self._link = f"gv{os.getpid()}n{number}"[:15]
        self._delay_s, self._systemd, self._disk_bytes = delay_s, systemd, disk_bytes
        self._undo = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_cut = False

    def __enter__(self) -> Self:
        try:
            self._make_disk()
            self._make_network()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._undo:
            self.kill(silent=False)
            for folder in self._cgroups():
                _remove_cgroup(folder)

    def start(self) -> None:
        """Boot, and wait until SSH answers."""
        (self.disk / "boot_id").write_text(f"{uuid.uuid4()}\n")
        for folder in self._cgroups():
            folder.mkdir(exist_ok=True)
        script = PREPARE + (SYSTEMD if self._systemd else PLAIN)
        spaces = ["--pid", "--mount", "--uts", "--ipc", *(["--cgroup"] if self._systemd else [])]
        enter = ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", *spaces, "--fork", "--kill-child=KILL"]
        variables = {
            "NAME": self.name,
            "OURS": " ".join(_in_tmp()),
            "DISK": str(self.disk),
            "ROOT": str(self.disk / "root"),
            "PATH": sshd.CLEAN_PATH,
        }
        join = ["sh", "-c", f'{self._join_cgroups()} exec "$@"', "sh"]
        with (self.folder / "boot.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*sshd.dies_with_us(), *join, *enter, "bash", "-c", script],
                env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait_until_up()

    def kill(self, *, silent: bool = True) -> None:
        """Pull the plug: everything on it ends at once. Silent: nobody answers for it any more, as for an instance
        that is gone; else the network stays and refuses."""
        if self._process is not None:
            for pid in [*sshd.descendants(self._process.pid), self._process.pid]:
                sshd.kill(pid)
            self._process.wait()
            self._process = None
        if silent:
            self.cut()

    def restart(self, *, new_host_key: bool = False) -> None:
        """Boot again: same disk and address, empty /tmp and /run, another boot id."""
        self.kill(silent=False)
        self.heal()
        if new_host_key:
            sshd.make_key(self.disk / "keys" / "hostkey")
        self.start()

    def cut(self) -> None:
        """Drop every packet, both ways, without a word to either side."""
        if not self._is_cut:
            self._inside("iptables", "-w", "-I", "INPUT", "-i", "eth0", "-j", "DROP")
            self._inside("iptables", "-w", "-I", "OUTPUT", "-o", "eth0", "-j", "DROP")
            self._is_cut = True

    def heal(self) -> None:
        """End a cut."""
        if self._is_cut:
            self._inside("iptables", "-w", "-F")
            self._is_cut = False

    @property
    def process_id(self) -> int | None:
        """Of its first process, which all others on it descend from; None while it is off."""
        return None if self._process is None else self._process.pid

    def compute_on(self, cores: Collection[int]) -> None:
        """What logs in from now on has these cores of ours, and counts no others."""
        assert self._process is not None
        for pid in [self._process.pid, *sshd.descendants(self._process.pid)]:
            os.sched_setaffinity(pid, cores)

    @property
    def identity(self) -> str:
        return f"[{self.host}]:22"

    @property
    def fingerprint(self) -> str:
        return sshd.fingerprint(self.disk / "keys" / "hostkey.pub")

    @property
    def home(self) -> Path:
        """The login's home folder, seen from outside. For looking only: the host may have it open."""
        return self.disk / "up" / "home" / USER

    def address(self, *, vouched: bool = True) -> Address:
        """How to reach it. Not vouched: nothing says what its host key is."""
        return sshd.address_of(self, vouched=vouched)

    def inventory_entry(self, *, machine: str = "2xCPU", extra: str = "") -> str:
        """A [hosts.NAME] table for inventory.toml."""
        return sshd.inventory_entry_of(self, machine_type=machine, extra=extra)

    def _make_disk(self) -> None:
        self.folder.mkdir(parents=True)
        self._undo.enter_context(sshd.small_disk(self.disk, self._disk_bytes))
        for part in ("up", "work", "root", "keys"):
            (self.disk / part).mkdir()
            (self.disk / part).chmod(0o755)  # of the host's root folder, whatever our umask
        sshd.make_key(self.key_file)
        sshd.make_key(self.disk / "keys" / "hostkey")
        shutil.copy(f"{self.key_file}.pub", self.disk / "keys" / "authorized_keys")
        (self.disk / "keys" / "sshd_config").write_text(CONFIG.format(pam="yes" if self._systemd else "no"))

    def _make_network(self) -> None:
        # Without this a packet for a host that is not up yet leaves by the default route, and a stranger answers.
        subprocess.run(["ip", "route", "replace", "unreachable", SUPERNET], check=True)
        _ip("netns", "add", self.netns)
        self._undo.callback(_ip, "netns", "del", self.netns)
        self._inside("ip", "link", "set", "lo", "up")
        if self._delay_s:
            self._start_slow_link()
            return
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        _ip("addr", "add", f"{self._here}/30", "dev", self._link)
        _ip("link", "set", self._link, "up")
        self._inside("ip", "addr", "add", f"{self.host}/30", "dev", "eth0")
        self._inside("ip", "link", "set", "eth0", "up")

    def _start_slow_link(self) -> None:
        program = str(Path(__file__).with_name("slow_link.py"))
        argv = [
            *sshd.dies_with_us(),
            sys.executable,
            program,
            self._link,
            self._here,
            self.host,
            self.netns,
            str(self._delay_s),
        ]
        relay = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True)
        self._undo.callback(relay.wait)
        self._undo.callback(relay.send_signal, signal.SIGKILL)
        if relay.stdout is None or relay.stdout.readline() != b"ready\n":
            raise RuntimeError("the slow link did not come up")

    def _join_cgroups(self) -> str:
        return " ".join(f"echo $$ > {folder}/cgroup.procs;" for folder in self._cgroups())

    def _cgroups(self) -> list[Path]:
        """systemd wants a control group of its own in each hierarchy."""
        return [Path("/sys/fs/cgroup") / group / self.netns for group in CGROUPS] if self._systemd else []

    def _wait_until_up(self) -> None:
        until = time.monotonic() + UP_WITHIN_S
        while time.monotonic() < until and self._process is not None and self._process.poll() is None:
            if self._greets():
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} did not come up: {(self.folder / 'boot.log').read_text()[-2000:]}")

    def _greets(self) -> bool:
        """Whether sshd says who it is. One that is only just starting may refuse, reset, or accept and say nothing."""
        try:
            with socket.create_connection((self.host, 22), timeout=2) as probe:
                return probe.recv(4) == b"SSH-"
        except OSError:
            return False

    def _inside(self, *argv: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.netns, *argv], check=True, timeout=120)


def _in_tmp() -> Iterator[str]:
    """The checkout and the Python of the tests, where the host's own /tmp would hide them."""
    folders = {str(REPOSITORY), sys.prefix, sys.base_prefix}
    return (each for each in sorted(folders) if Path(each).is_relative_to("/tmp"))


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, timeout=120)


def _remove_cgroup(folder: Path) -> None:
    """Only rmdir works here, from the leaves up, and only once the dead processes are reaped."""
    until = time.monotonic() + UP_WITHIN_S
    while folder.exists():
        try:
            for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                below.rmdir()
            folder.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)

"""The test machines are what they say: other tests lean on it, and so would a person renting one."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from orchestrator.core.errors import LinkLost, MachineUnfit, Unreachable
from orchestrator.remote.shell.ssh_shell import SshShell, connect
from orchestrator.remote.transfer.transfer import push_file
from tests.contract.remote.test_transfer import a_file, entry
from tests.support.machines.namespaces import NamespaceHost
from tests.support.machines.sshd import Sshd

DETACH = ["sh", "-c", "setsid -f sh -c 'echo $$ > pid; exec sleep 600' </dev/null >/dev/null 2>&1; sleep 0.3"]
# A dead process may stay a zombie for seconds, and after a reboot its number belongs to another.
ALIVE = ["sh", "-c", "grep -q '^[0-9]* (sleep) [^Z]' /proc/$(cat pid)/stat && echo alive"]
BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]


def meet(host: NamespaceHost | Sshd, pins: Path, deadline_s: float = 10) -> SshShell:
    return connect(host.address(), known_hosts=pins, connect_deadline_s=deadline_s)


def test_a_killed_host_falls_silent_and_takes_detached_jobs_along(rented: NamespaceHost, tmp_path: Path) -> None:
    shell = meet(rented, tmp_path / "pins")
    shell.run(DETACH)
    assert shell.run(ALIVE).stdout == b"alive\n"
    boot = shell.run(BOOT_ID).stdout
    rented.kill()
    with pytest.raises(LinkLost):
        shell.run(["true"])
    with pytest.raises(Unreachable, match="no answer"):
        meet(rented, tmp_path / "pins", deadline_s=1)
    rented.restart()
    again = meet(rented, tmp_path / "pins")
    assert again.run(ALIVE).stdout == b""
    assert again.run(["cat", "pid"]).stdout.strip().isdigit(), "the disk outlives a reboot"
    assert again.run(BOOT_ID).stdout != boot
    again.close()


def test_a_host_has_its_own_name_home_and_files(rented: NamespaceHost, tmp_path: Path) -> None:
    shell = meet(rented, tmp_path / "pins")
    assert shell.run(["hostname"]).stdout.decode().strip() == rented.name != socket.gethostname()
    assert shell.run(["sh", "-c", "pwd; ls -A"]).stdout.decode().split() == [f"/home/{rented.user}"]
    shell.run(["touch", "/etc/only-there"])
    assert not Path("/etc/only-there").exists()
    shell.close()


def test_a_full_disk_of_a_host_is_its_own_and_is_said(tmp_path: Path) -> None:
    source = a_file(tmp_path / "big", 24 << 20)
    with NamespaceHost(tmp_path / "machines", disk_bytes=16 << 20) as host:
        shell = meet(host, tmp_path / "pins")
        with pytest.raises(MachineUnfit, match=r"needs 0.03 GB, the machine has 0.0\d GB free"):
            push_file(shell, source, "big")
        shell.close()


def test_a_slow_link_is_slow_and_carries_every_byte(tmp_path: Path) -> None:
    source = a_file(tmp_path / "big", 3 << 20)
    with NamespaceHost(tmp_path / "machines", delay_s=0.02) as host:
        shell = meet(host, tmp_path / "pins")
        started = time.monotonic()
        shell.run(["true"])
        assert time.monotonic() - started >= 2 * 0.02
        push_file(shell, source, "big")
        assert entry(host.home / "big") == entry(source)
        shell.close()


def test_a_host_with_a_real_systemd_keeps_detached_jobs_after_the_session(tmp_path: Path) -> None:
    with NamespaceHost(tmp_path / "machines", systemd=True) as host:
        shell = meet(host, tmp_path / "pins")
        assert shell.run(["ps", "-p", "1", "-o", "comm="]).stdout == b"systemd\n"
        assert shell.run(["loginctl", "list-sessions", "--no-legend"]).stdout, "pam_systemd made a session of ours"
        shell.run(DETACH)
        shell.close()
        again = meet(host, tmp_path / "pins")
        assert again.run(ALIVE).stdout == b"alive\n"
        again.close()


def test_a_quick_machine_is_restarted_with_everything_on_it_gone(box: Sshd, tmp_path: Path) -> None:
    shell = meet(box, tmp_path / "pins")
    shell.run(DETACH)
    box.kill()
    with pytest.raises(Unreachable, match="refused"):
        meet(box, tmp_path / "pins")
    box.start()
    again = meet(box, tmp_path / "pins")
    assert again.run(ALIVE).stdout == b"alive\n", "what detached itself outlives its sshd"
    again.close()
    box.restart()
    third = meet(box, tmp_path / "pins")
    assert third.run(ALIVE).stdout == b""
    third.close()

"""A connection that OpenSSH itself makes, for logins that paramiko cannot: keys on hardware, agents named by
IdentityAgent, certificates, PKCS#8 files, Kerberos, old key exchanges. What `ssh` accepts, works.

One `ssh -M` process holds the connection; each command is an `ssh` of its own through it, so you touch a key once. It
ends with this process, also where that is killed. All of your ~/.ssh/config counts, save what could lead elsewhere or
run something here. The host key must be the pinned one.

    link = hand_over(endpoint, address, known_hosts, 10.0)
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.core.errors import Unreachable
from orchestrator.core.ports import Address
from orchestrator.remote.shell import login_shell
from orchestrator.remote.shell.ssh_endpoint import Endpoint, config_file, pinned_options

LOOK_EVERY_S = 0.05
KEEPER = """\
exec 3<&0
"$@" </dev/null 3<&- & child=$!
{ cat; kill $child; } <&3 >/dev/null 2>&1 & watch=$!
exec 3<&- </dev/null
wait $child 2>/dev/null; code=$?
kill $watch 2>/dev/null
exit $code
"""
"""Runs the words after it until they end, or until nobody holds the other end of its stdin: a process that is killed
closes that, and can end nothing any more."""
SSH_FAILED = 255
OVERRULED = {
    "BatchMode": "yes",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ClearAllForwardings": "yes",
    "ControlPersist": "no",
}
"""Whatever ~/.ssh/config says of these."""


class OpenSshLink:
    """A Link whose connection is an `ssh` process; `argv` reaches the machine through it."""

    def __init__(self, argv: Sequence[str], master: subprocess.Popen[bytes], folder: str) -> None:
        self.argv, self._master, self._folder = argv, master, folder

    def channel(self, deadline_s: float) -> ProcessChannel:
        if self._master.poll() is not None:
            raise OSError("the connection that ssh made is gone")
        return ProcessChannel([*self.argv[:-1], "-o", "ControlMaster=no", self.argv[-1], login_shell.COMMAND])

    def is_lost(self) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._master.wait(0.5)
        return self._master.poll() is not None

    def close(self) -> None:
        _end(self._master)
        shutil.rmtree(self._folder, ignore_errors=True)


class ProcessChannel:
    """A Channel whose command runs in an `ssh` process here."""

    def __init__(self, argv: Sequence[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True)
        self._timeout_s: float | None = None
        self.exit_status = -1
        self.status_event = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        code = self._process.wait()
        self.exit_status = -1 if code < 0 or code == SSH_FAILED else code
        self.status_event.set()

    def recv(self, size_bytes: int, /) -> bytes:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self._timeout_s)[0]:
            raise TimeoutError
        return os.read(self._process.stdout.fileno(), size_bytes)

    def recv_stderr(self, size_bytes: int, /) -> bytes:
        assert self._process.stderr is not None
        return os.read(self._process.stderr.fileno(), size_bytes)

    def sendall(self, data: bytes, /) -> None:
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) or 0 :]

    def shutdown_write(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def settimeout(self, timeout_s: float, /) -> None:
        self._timeout_s = timeout_s

    def close(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def hand_over(endpoint: Endpoint, address: Address, known_hosts: Path, deadline_s: float) -> OpenSshLink:
    """The connection as ssh makes it. Raises Unreachable with ssh's own words."""
    folder = tempfile.mkdtemp(prefix="gptctl-ssh-")
    argv = _argv(endpoint, address, known_hosts, f"{folder}/link")
    with tempfile.TemporaryFile() as errors:
        kept = ["sh", "-c", KEEPER, "sh", *argv[:-1], "-M", "-N", argv[-1]]
        master = subprocess.Popen(kept, stdin=subprocess.PIPE, stdout=errors, stderr=errors, start_new_session=True)
        until = time.monotonic() + deadline_s
        while master.poll() is None and not os.path.exists(f"{folder}/link") and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
        if os.path.exists(f"{folder}/link"):
            return OpenSshLink(argv, master, folder)
        errors.seek(0)
        said = login_shell.shown(errors.read()) or f"no answer within {deadline_s:.0f} s"
        _end(master)
        shutil.rmtree(folder, ignore_errors=True)
    raise Unreachable(f"ssh: {said}")


def _end(master: subprocess.Popen[bytes]) -> None:
    """Ends the connection; the keeper sees its stdin close."""
    assert master.stdin is not None
    master.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        master.wait(5)
    master.kill()
    master.wait()


def _argv(endpoint: Endpoint, address: Address, known_hosts: Path, control: str) -> list[str]:
    """`ssh` with the user's own settings, and ours where they decide who is reached and what runs."""
    options = ["ssh", *config_file(), "-T"]
    for name, value in {**pinned_options(endpoint, known_hosts), **OVERRULED, "ControlPath": control}.items():
        options += ["-o", f"{name}={value}"]
    options += ["-p", str(address.port)] if address.port else []
    options += ["-l", address.user] if address.user else []
    options += ["-o", "IdentitiesOnly=yes", "-i", address.key_file] if address.key_file else []
    return [*options, address.host or endpoint.host]

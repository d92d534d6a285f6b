"""A Shell over SSH: the one place where Fabric, paramiko and invoke are imported.

Fabric makes the connection; commands run on raw channels of it, because Fabric's `run` decodes bytes as text, quotes
nothing in `env=` and never notices a dead link. Rules that keep this safe:
- a host key is compared before a user name is sent; Fabric's own policy accepts every key, even a changed one;
- `env=` is never used: the far shell would execute its values;
- silence and an exit code of -1 mean that the link is lost; connecting again is the caller's business.

    shell = connect(Address(host="box", identity="[box]:22"), known_hosts=home / "known_hosts")
    shell.run(["python3", "--version"]).stdout
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import fabric
import paramiko

from orchestrator.core.errors import LinkLost, Unreachable
from orchestrator.core.ports import Address, Result
from orchestrator.remote.shell import put_and_get
from orchestrator.remote.shell.host_key_check import Trust
from orchestrator.remote.shell.known_hosts import HostKey
from orchestrator.remote.shell.put_and_get import checked, short
from orchestrator.remote.shell.ssh_endpoint import SILENCE_S, Endpoint, openssh_argv, resolve
from orchestrator.remote.whole_files import landing

CHUNK_BYTES, FLOOD_BYTES = 256 << 10, 64 << 20
STDERR_CHUNKS = 1024
SIGNALLED_WAIT_S = 0.5
SOCKET_OPTIONS = {
    "TCP_NODELAY": 1,  # 44 -> 12 ms per command (measured)
    "TCP_USER_TIMEOUT": 5000,  # ms; with keepalive a dead link is noticed after 7 s, with either alone it never is
    "TCP_KEEPIDLE": SILENCE_S,
    "TCP_KEEPINTVL": SILENCE_S,
    "TCP_KEEPCNT": 2,
}

# Without a handler of its own, paramiko's transport thread writes tracebacks to the user's terminal.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


def connect(
    address: Address,
    *,
    known_hosts: Path,
    accept_new: bool = False,
    user_known_hosts: Path | None = None,
    connect_deadline_s: float = 10.0,
) -> SshShell:
    """Connect and authenticate, host key first; through the jumps of ~/.ssh/config where it has any.

    `user_known_hosts` None means ~/.ssh/known_hosts. Errors: Unreachable (refused, timed out, no key accepted),
    HostKeyChanged, HostKeyUnknown, UserError (settings).
    """
    trust = Trust(known_hosts, user_known_hosts or Path.home() / ".ssh" / "known_hosts", accept_new)
    endpoint = resolve(address)
    links = _dial(endpoint, trust, address.fingerprint, time.monotonic() + connect_deadline_s)
    return SshShell(address, links, openssh_argv(endpoint, known_hosts))


class SshShell:
    """The connection to one machine; ports.Shell says what each method promises. Close it."""

    def __init__(self, address: Address, links: Sequence[fabric.Connection], argv: Sequence[str]) -> None:
        self.address = address
        self._links = links
        self._argv = argv
        self._name = address.host or address.identity

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 30.0) -> Result:
        """Code -1 is a command that died by a signal; paramiko does not say which."""
        received: list[bytes] = []
        code, stderr = self._exec(argv, [stdin], received.append, deadline_s)
        return Result(tuple(argv), code, b"".join(received), stderr)

    def lines(
        self, argv: Sequence[str], *, stdin: bytes = b"", silence_s: float = 10.0, pulse_s: float = 0.0
    ) -> AbstractContextManager[Iterator[bytes]]:
        return self._lines(argv, stdin, silence_s, pulse_s)

    def put(self, local: Path, remote: str, *, mode: int = 0o644, deadline_s: float = 120.0) -> None:
        with local.open("rb") as file:
            argv = put_and_get.put_argv(remote, mode, hashlib.file_digest(file, "sha256").hexdigest())
            file.seek(0)
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            code, stderr = self._exec(argv, chunks, lambda _: None, deadline_s)
        if code:
            raise put_and_get.failure(f"{self._name}: cannot write {remote}", code, stderr)

    def get(self, remote: str, local: Path, *, deadline_s: float = 120.0) -> None:
        arrival = put_and_get.Arrival(f"{self._name}: {remote}")
        with landing(local) as file:
            code, stderr = self._exec(put_and_get.get_argv(remote), [], arrival.into(file), deadline_s)
            if code:
                raise put_and_get.failure(f"{self._name}: cannot read {remote}", code, stderr)
            arrival.verify()

    def openssh(self) -> Sequence[str] | None:
        return list(self._argv)

    def close(self) -> None:
        _close(self._links)

    def _exec(
        self, argv: Sequence[str], chunks: Iterable[bytes], sink: Callable[[bytes], None], deadline_s: float
    ) -> tuple[int, bytes]:
        """Chunks go to stdin, stdout goes to the sink; the exit code and stderr come back."""
        until = time.monotonic() + deadline_s
        channel = self._start(argv, deadline_s)
        try:
            with _cut_after(until - time.monotonic(), partial(_shut, channel)) as expired:
                errors = _collect_stderr(channel)
                threading.Thread(target=_feed, args=(channel, chunks), daemon=True).start()
                received_bytes = 0
                while data := channel.recv(CHUNK_BYTES):
                    sink(data)
                    received_bytes += len(data)
                    if received_bytes > FLOOD_BYTES:
                        raise put_and_get.flood(f"{self._name}: the answer of `{short(argv)}`", FLOOD_BYTES)
                # A command may close its stdout and go on; only its exit status ends the wait.
                channel.status_event.wait()
            if expired.is_set():
                raise self._lost(f"`{short(argv)}` gave no result within {deadline_s:g} s")
            return self._exit_code(channel, argv), errors()
        finally:
            _shut(channel)

    @contextmanager
    def _lines(self, argv: Sequence[str], stdin: bytes, silence_s: float, pulse_s: float) -> Iterator[Iterator[bytes]]:
        channel = self._start(argv, silence_s)
        chunks = put_and_get.pulsing(stdin, pulse_s, channel.status_event)
        try:
            errors = _collect_stderr(channel)
            threading.Thread(target=_feed, args=(channel, chunks), daemon=True).start()
            channel.settimeout(silence_s)
            yield self._each_line(channel, argv, silence_s, errors)
        finally:
            _shut(channel)

    def _each_line(
        self, channel: paramiko.Channel, argv: Sequence[str], silence_s: float, errors: Callable[[], bytes]
    ) -> Iterator[bytes]:
        yield from put_and_get.split_lines(self._chunks(channel, argv, silence_s), FLOOD_BYTES)
        if code := self._exit_code(channel, argv):
            raise put_and_get.failure(f"{self._name}: `{short(argv)}`", code, errors())

    def _chunks(self, channel: paramiko.Channel, argv: Sequence[str], silence_s: float) -> Iterator[bytes]:
        silent = self._lost(f"`{short(argv)}` was silent for {silence_s:g} s")
        try:
            while data := channel.recv(CHUNK_BYTES):
                yield data
        except TimeoutError:
            raise silent from None
        if not channel.status_event.wait(silence_s):
            raise silent
        self._exit_code(channel, argv)  # a broken link ends the stream too, but its last piece is not a line

    def _start(self, argv: Sequence[str], deadline_s: float) -> paramiko.Channel:
        # One line for the far login shell, which makes exactly argv of it again.
        command = os.fsencode(shlex.join(checked(argv)))
        try:
            channel = self._links[-1].transport.open_session(timeout=deadline_s)
            with _cut_after(deadline_s, partial(_shut, channel)):
                channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError, AttributeError) as error:
            # AttributeError: Fabric forgets the transport of a closed connection.
            why = str(error) or type(error).__name__
            raise self._lost(f"cannot start `{short(argv)}`: {why}") from error
        return channel

    def _exit_code(self, channel: paramiko.Channel, argv: Sequence[str]) -> int:
        code = int(channel.exit_status)
        transport = self._links[-1].transport
        if code == -1 and transport is not None:
            # A signal ended the command, or the link broke: that takes the transport down within moments.
            transport.join(SIGNALLED_WAIT_S)
        if code == -1 and (transport is None or not transport.is_active()):
            raise self._lost(f"the link broke while `{short(argv)}` ran")
        return code

    def _lost(self, what: str) -> LinkLost:
        return LinkLost(f"{self._name}: {what}", hint="the machine goes on by itself; try again")


class _AskTrust:
    """A paramiko.MissingHostKeyPolicy: asked after the key exchange and before a user name is sent."""

    def __init__(self, decide: Callable[[HostKey], None]) -> None:
        self.decide = decide

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        self.decide(_host_key(key))


def _dial(endpoint: Endpoint, trust: Trust, fingerprint: str | None, until: float) -> list[fabric.Connection]:
    """The connections to every jump and then to the machine; `until` is on the monotonic clock."""
    with ExitStack() as undo:
        links = _dial(endpoint.jump, trust, None, until) if endpoint.jump else []
        undo.callback(_close, links)
        left_s = max(0.1, until - time.monotonic())
        expected = trust.expected(endpoint, fingerprint)
        try:
            road = _road(endpoint, links[-1] if links else None, left_s)
            undo.callback(_shut, road)
            link = _fabric(endpoint, road, expected, left_s)
            undo.callback(link.client.close)
            link.client.set_missing_host_key_policy(_AskTrust(partial(trust.decide, endpoint, fingerprint, expected)))
            with _cut_after(left_s, partial(_shut, road)):
                link.open()
            link.transport.set_keepalive(SILENCE_S)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise _no_connection(endpoint, trust, error, until) from error
        trust.remember(endpoint, _host_key(link.transport.get_remote_server_key()))
        undo.pop_all()
        return [*links, link]


def _road(endpoint: Endpoint, before: fabric.Connection | None, deadline_s: float) -> socket.socket | paramiko.Channel:
    """What the bytes travel on: a tuned socket, or a channel through the jump."""
    if before is not None:
        target = (endpoint.host, endpoint.port)
        return before.transport.open_channel("direct-tcpip", target, ("", 0), timeout=deadline_s)
    road = socket.create_connection((endpoint.host, endpoint.port), timeout=deadline_s)
    road.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SOCKET_OPTIONS.items():
        if hasattr(socket, name):  # macOS lacks some
            road.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return road


def _fabric(
    endpoint: Endpoint, road: socket.socket | paramiko.Channel, expected: Sequence[HostKey], deadline_s: float
) -> fabric.Connection:
    """A Fabric connection that reads no configuration files and knows exactly the expected host keys."""
    settings = {
        "sock": road,
        "key_filename": list(endpoint.key_files),
        "look_for_keys": False,
        "banner_timeout": deadline_s,
        "auth_timeout": deadline_s,
        "channel_timeout": deadline_s,
    }
    config = fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())
    link = fabric.Connection(
        endpoint.host,
        user=endpoint.user,
        port=endpoint.port,
        config=config,
        forward_agent=False,
        connect_timeout=deadline_s,
        connect_kwargs=settings,
    )
    name = endpoint.host if endpoint.port == paramiko.config.SSH_PORT else f"[{endpoint.host}]:{endpoint.port}"
    kinds = [key.kind for key in expected]
    # paramiko holds one key of a kind; of several, while a machine changes its own, _AskTrust knows.
    for key in expected if len(kinds) == len(set(kinds)) else ():
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{name} {key.kind} {key.base64}")
        if entry is not None and entry.key is not None:
            link.client.get_host_keys().add(name, key.kind, entry.key)
    return link


def _no_connection(endpoint: Endpoint, trust: Trust, error: Exception, until: float) -> Exception:
    """paramiko's and the socket's words for it, as ours."""
    if isinstance(error, paramiko.BadHostKeyException):
        return trust.changed(endpoint, [_host_key(error.expected_key)], _host_key(error.key))
    if isinstance(error, paramiko.AuthenticationException):
        keys = ", ".join(endpoint.key_files) or "no key file, only the agent"
        locked = isinstance(error, paramiko.PasswordRequiredException)
        hint = "the key has a passphrase: ssh-add it first" if locked else "check `user` and `ssh_key` in the inventory"
        return Unreachable(f"{endpoint} accepts none of our keys ({keys}): {error}", hint=hint)
    late = time.monotonic() >= until or isinstance(error, TimeoutError)
    what = "no answer in time" if late else str(error) or type(error).__name__
    return Unreachable(f"{endpoint}: {what}", hint=f"see what ssh says: ssh -v -p {endpoint.port} {endpoint.host}")


def _close(links: Sequence[fabric.Connection]) -> None:
    for link in reversed(links):
        link.close()


def _host_key(key: paramiko.PKey) -> HostKey:
    return HostKey(key.get_name(), key.get_base64())


def _shut(road: socket.socket | paramiko.Channel) -> None:
    """Saying goodbye over a broken link fails; and nothing is lost by it."""
    with suppress(OSError, EOFError, paramiko.SSHException):
        road.close()


def _feed(channel: paramiko.Channel, chunks: Iterable[bytes]) -> None:
    """In a thread: a command may write more than the window holds before it reads its stdin."""
    try:
        for chunk in chunks:
            channel.sendall(chunk)
        channel.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        # The command ended without reading all, or the link is gone: the reading side finds out which.
        _shut(channel)


def _collect_stderr(channel: paramiko.Channel) -> Callable[[], bytes]:
    """Drain stderr beside stdout, since both share one window; the result is what came until the channel closed."""
    received: list[bytes] = []

    def drain() -> None:
        while data := channel.recv_stderr(CHUNK_BYTES):
            if len(received) < STDERR_CHUNKS:
                received.append(data)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()

    def collected() -> bytes:
        thread.join(SILENCE_S)
        return b"".join(received)

    return collected


@contextmanager
def _cut_after(deadline_s: float, cut: Callable[[], None]) -> Iterator[threading.Event]:
    """paramiko waits without limit in several places; closing what it waits on is what ends the wait."""
    expired = threading.Event()

    def fire() -> None:
        expired.set()
        cut()

    timer = threading.Timer(max(0.0, deadline_s), fire)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()

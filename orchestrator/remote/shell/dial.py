"""Makes the connection for ssh_shell: jumps of ~/.ssh/config first, host keys compared before a user name is sent.

Fabric's own policy accepts every host key, even a changed one; ours asks `host_key_check`. Nothing here runs a command.

    links = dial(endpoint, trust, fingerprint, time.monotonic() + 10.0)
"""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import fabric
import paramiko

from orchestrator.core.errors import Unreachable
from orchestrator.remote.shell import login_shell
from orchestrator.remote.shell.host_key_check import Trust
from orchestrator.remote.shell.known_hosts import HostKey
from orchestrator.remote.shell.link import Channel
from orchestrator.remote.shell.ssh_endpoint import SILENCE_S, Endpoint

SOCKET_OPTIONS = {
    "TCP_NODELAY": 1,  # 44 -> 12 ms per command (measured)
    "TCP_USER_TIMEOUT": 5000,  # ms; with keepalive a dead link is noticed after 7 s, with either alone it never is
    "TCP_KEEPIDLE": SILENCE_S,
    "TCP_KEEPINTVL": SILENCE_S,
    "TCP_KEEPCNT": 2,
}

SIGNALLED_WAIT_S = 0.5
BUSY_WAITS_S = (0.2, 0.5, 1.0)

# Without a handler of its own, paramiko's transport thread writes tracebacks to the user's terminal.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class _AskTrust:
    """A paramiko.MissingHostKeyPolicy: asked after the key exchange and before a user name is sent."""

    def __init__(self, decide: Callable[[HostKey], None]) -> None:
        self.decide = decide

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        self.decide(_host_key(key))


class Refused(Unreachable):
    """The machine showed the right host key, and Fabric could not log in: OpenSSH may."""


class Busy(Unreachable):
    """sshd hung up before it said a word."""


class FabricLink:
    """A Link made by Fabric: the connections to every jump, and last the machine's."""

    def __init__(self, links: Sequence[fabric.Connection], again: Callable[[], Sequence[fabric.Connection]]) -> None:
        self._links = list(links)
        self._ends = [links[-1]]
        self._again = again

    def channel(self, deadline_s: float) -> Channel:
        """On the first connection that takes one more: a new one is made where sshd allows few sessions on each."""
        for end in [*self._ends, None]:
            if end is None:
                try:
                    more = self._again()
                except Unreachable as error:
                    raise OSError(f"sshd opens no further session here, and no further connection: {error}") from error
                self._links += more
                self._ends.append(end := more[-1])
            try:
                return self._on(end, deadline_s)
            except paramiko.ChannelException:
                continue  # "administratively prohibited": MaxSessions of its sshd_config
            except (paramiko.SSHException, EOFError, AttributeError) as error:
                # AttributeError: Fabric forgets the transport of a closed connection.
                raise OSError(str(error) or type(error).__name__) from error
        raise OSError("sshd opens no session; see MaxSessions in its sshd_config")

    def _on(self, end: fabric.Connection, deadline_s: float) -> Channel:
        channel = end.transport.open_session(timeout=deadline_s)
        with cut_after(deadline_s, partial(shut, channel)):
            channel.exec_command(login_shell.COMMAND)
        opened: Channel = channel
        return opened

    def is_lost(self) -> bool:
        transports = [end.transport for end in self._ends]
        for transport in filter(None, transports):
            # A signal ended the command, or the link broke: that takes the transport down within moments.
            transport.join(SIGNALLED_WAIT_S)
        return not all(transport is not None and transport.is_active() for transport in transports)

    def close(self) -> None:
        close(self._links)


def dialled(endpoint: Endpoint, trust: Trust, fingerprint: str | None, deadline_s: float) -> list[fabric.Connection]:
    """A connection. One that ends before sshd has said a word is tried again: MaxStartups of its sshd_config drops some
    while others log in."""
    until = time.monotonic() + deadline_s
    for wait_s in BUSY_WAITS_S:
        with suppress(Busy):
            return dial(endpoint, trust, fingerprint, until)
        time.sleep(min(wait_s, max(0.0, until - time.monotonic())))
    return dial(endpoint, trust, fingerprint, until)


def dial(endpoint: Endpoint, trust: Trust, fingerprint: str | None, until: float) -> list[fabric.Connection]:
    """The connections to every jump and then to the machine; `until` is on the monotonic clock."""
    with ExitStack() as undo:
        links = dial(endpoint.jump, trust, None, until) if endpoint.jump else []
        undo.callback(close, links)
        left_s = max(0.1, until - time.monotonic())
        expected = trust.expected(endpoint, fingerprint)
        link = None
        try:
            road = _road(endpoint, links[-1] if links else None, left_s)
            undo.callback(shut, road)
            link = _fabric(endpoint, road, expected, left_s)
            undo.callback(link.client.close)
            link.client.set_missing_host_key_policy(_AskTrust(partial(trust.decide, endpoint, fingerprint, expected)))
            with cut_after(left_s, partial(shut, road)):
                link.open()
            link.transport.set_keepalive(SILENCE_S)
        except (paramiko.SSHException, EOFError, OSError, ValueError, TypeError) as error:
            # The last two: a key file in a format that paramiko reads wrongly.
            if _is_known(link, endpoint, trust, fingerprint, expected):
                raise _not_let_in(endpoint, error) from error
            raise _no_connection(endpoint, trust, error, until) from error
        trust.remember(endpoint, _host_key(link.transport.get_remote_server_key()))
        undo.pop_all()
        return [*links, link]


def _road(endpoint: Endpoint, before: fabric.Connection | None, deadline_s: float) -> socket.socket | paramiko.Channel:
    """What the bytes travel on: a tuned socket, or a channel through the jump."""
    if endpoint.proxy_command:
        return _through(endpoint.proxy_command)
    if before is not None:
        target = (endpoint.host, endpoint.port)
        return before.transport.open_channel("direct-tcpip", target, ("", 0), timeout=deadline_s)
    road = socket.create_connection((endpoint.host, endpoint.port), timeout=deadline_s)
    road.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SOCKET_OPTIONS.items():
        if hasattr(socket, name):  # macOS lacks some
            road.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return road


def _through(command: str) -> socket.socket:
    """What the user's own ProxyCommand makes of its stdin and stdout; it ends when this end is closed."""
    ours, its = socket.socketpair()
    with its:
        subprocess.Popen(
            ["sh", "-c", f"exec {command}"], stdin=its.fileno(), stdout=its.fileno(), start_new_session=True
        )
    return ours


def _is_known(
    link: fabric.Connection | None,
    endpoint: Endpoint,
    trust: Trust,
    fingerprint: str | None,
    expected: Sequence[HostKey],
) -> bool:
    """Whether the machine proved to have the key it should have, before it turned us away; the key is pinned then.
    Raises HostKeyChanged or HostKeyUnknown."""
    transport = link.client.get_transport() if link is not None else None
    if transport is None or not transport.initial_kex_done:
        return False
    key = _host_key(transport.get_remote_server_key())
    trust.decide(endpoint, fingerprint, expected, key)
    trust.remember(endpoint, key)
    return True


def _not_let_in(endpoint: Endpoint, error: Exception) -> Refused:
    keys = ", ".join(endpoint.key_files) or "no key file, only the agent"
    locked = isinstance(error, paramiko.PasswordRequiredException)
    hint = "the key has a passphrase: ssh-add it first" if locked else "check `user` and `ssh_key` in the inventory"
    return Refused(f"{endpoint} accepts none of our keys ({keys}): {error}", hint=hint)


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
    late = time.monotonic() >= until or isinstance(error, TimeoutError)
    if not late and (isinstance(error, EOFError | ConnectionResetError) or "protocol banner" in str(error)):
        return Busy(f"{endpoint}: it hung up before the login: {error or 'without a word'}", hint="try again later")
    said = str(error).replace("No existing session", "the connection ended before the login")
    what = "no answer in time" if late else said or type(error).__name__
    return Unreachable(f"{endpoint}: {what}", hint=f"see what ssh says: ssh -v -p {endpoint.port} {endpoint.host}")


def close(links: Sequence[fabric.Connection]) -> None:
    for link in reversed(links):
        link.close()


def _host_key(key: paramiko.PKey) -> HostKey:
    return HostKey(key.get_name(), key.get_base64())


def shut(road: socket.socket | Channel) -> None:
    """Saying goodbye over a broken link fails; and nothing is lost by it."""
    with suppress(OSError, EOFError, paramiko.SSHException):
        road.close()


@contextmanager
def cut_after(deadline_s: float, cut: Callable[[], None]) -> Iterator[threading.Event]:
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

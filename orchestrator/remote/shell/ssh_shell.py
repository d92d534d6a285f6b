"""A Shell over SSH, on a connection that Fabric makes, or OpenSSH where Fabric cannot log in.

Commands run on raw channels of Fabric's connection, because Fabric's `run` decodes bytes as text, quotes
nothing in `env=` and never notices a dead link. Rules that keep this safe:
- a host key is compared before a user name is sent; Fabric's own policy accepts every key, even a changed one;
- `env=` is never used: the far shell would execute its values;
- silence and an exit code of -1 mean that the link is lost; connecting again is the caller's business.

    shell = connect(Address(host="box", identity="[box]:22"), known_hosts=home / "known_hosts")
    shell.run(["python3", "--version"]).stdout
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import paramiko

from orchestrator.core.errors import LinkLost, Unreachable
from orchestrator.core.ports import Address, Result
from orchestrator.remote.shell import login_shell, put_and_get
from orchestrator.remote.shell.dial import FabricLink, Refused, cut_after, dialled, shut
from orchestrator.remote.shell.host_key_check import Trust
from orchestrator.remote.shell.link import Channel, Link
from orchestrator.remote.shell.openssh_link import hand_over
from orchestrator.remote.shell.put_and_get import short
from orchestrator.remote.shell.ssh_endpoint import SILENCE_S, openssh_argv, resolve
from orchestrator.remote.whole_files import landing

CHUNK_BYTES, FLOOD_BYTES = 256 << 10, 64 << 20
STDERR_CHUNKS = 1024
CONNECT_S = 10.0
PERSON_S = 60.0
"""A login that OpenSSH makes may wait for a person, who touches a key or answers an agent. The host itself answers."""
NO_TICKET = "if you log in there by Kerberos, get a ticket first: kinit"


def connect(
    address: Address,
    *,
    known_hosts: Path,
    accept_new: bool = False,
    user_known_hosts: Path | None = None,
    connect_deadline_s: float = CONNECT_S,
) -> SshShell:
    """Connect and authenticate, host key first; through the jumps of ~/.ssh/config where it has any.

    `user_known_hosts` None means ~/.ssh/known_hosts. Errors: Unreachable (refused, timed out, no key accepted),
    HostKeyChanged, HostKeyUnknown, UserError (settings).
    """
    trust = Trust(known_hosts, user_known_hosts or Path.home() / ".ssh" / "known_hosts", accept_new)
    endpoint = resolve(address)
    again = partial(dialled, endpoint, trust, address.fingerprint, connect_deadline_s)
    try:
        return SshShell(address, FabricLink(again(), again), openssh_argv(endpoint, known_hosts))
    except Refused as refused:
        try:
            patience_s = PERSON_S if connect_deadline_s >= CONNECT_S else connect_deadline_s
            link = hand_over(endpoint, address, known_hosts, patience_s)
        except Unreachable as error:
            hint = f"{refused.hint}; {NO_TICKET}" if "gssapi" in error.message else refused.hint
            raise Unreachable(f"{refused.message}; {error.message}", hint) from error
    return SshShell(address, link, link.argv)


class SshShell:
    """The connection to one machine; ports.Shell says what each method promises. Close it."""

    def __init__(self, address: Address, link: Link, argv: Sequence[str]) -> None:
        self.address = address
        self._link = link
        self._argv = argv
        self._name = address.host or address.identity
        self._greeting = ""

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

    def greeting(self) -> str:
        return self._greeting

    def close(self) -> None:
        self._link.close()

    def _exec(
        self, argv: Sequence[str], chunks: Iterable[bytes], sink: Callable[[bytes], None], deadline_s: float
    ) -> tuple[int, bytes]:
        """Chunks go to stdin, stdout goes to the sink; the exit code and stderr come back."""
        until = time.monotonic() + deadline_s
        answer = login_shell.Answer(mark := login_shell.new_mark())
        chunks = itertools.chain([login_shell.first_line(argv, mark)], chunks)
        channel = self._start(argv, deadline_s)
        try:
            with cut_after(until - time.monotonic(), partial(shut, channel)) as expired:
                errors = _collect_stderr(channel)
                threading.Thread(target=_feed, args=(channel, chunks), daemon=True).start()
                received_bytes = 0
                while data := channel.recv(CHUNK_BYTES):
                    if own := answer.after(data):
                        sink(own)
                    received_bytes += len(data)
                    if received_bytes > FLOOD_BYTES:
                        raise put_and_get.flood(f"{self._name}: the answer of `{short(argv)}`", FLOOD_BYTES)
                # A command may close its stdout and go on; only its exit status ends the wait.
                channel.status_event.wait()
            if expired.is_set():
                raise self._lost(f"`{short(argv)}` gave no result within {deadline_s:g} s")
            code = self._exit_code(channel, argv)
            self._hear(answer, code, errors)
            return code, errors()
        finally:
            shut(channel)

    @contextmanager
    def _lines(self, argv: Sequence[str], stdin: bytes, silence_s: float, pulse_s: float) -> Iterator[Iterator[bytes]]:
        answer = login_shell.Answer(mark := login_shell.new_mark())
        stdin = login_shell.first_line(argv, mark) + stdin
        channel = self._start(argv, silence_s)
        chunks = put_and_get.pulsing(stdin, pulse_s, channel.status_event)
        try:
            errors = _collect_stderr(channel)
            threading.Thread(target=_feed, args=(channel, chunks), daemon=True).start()
            channel.settimeout(silence_s)
            yield self._each_line(channel, argv, silence_s, errors, answer)
        finally:
            shut(channel)

    def _each_line(
        self,
        channel: Channel,
        argv: Sequence[str],
        silence_s: float,
        errors: Callable[[], bytes],
        answer: login_shell.Answer,
    ) -> Iterator[bytes]:
        own = filter(None, map(answer.after, self._chunks(channel, argv, silence_s)))
        yield from put_and_get.split_lines(own, FLOOD_BYTES)
        code = self._exit_code(channel, argv)
        self._hear(answer, code, errors)
        if code:
            raise put_and_get.failure(f"{self._name}: `{short(argv)}`", code, errors())

    def _chunks(self, channel: Channel, argv: Sequence[str], silence_s: float) -> Iterator[bytes]:
        silent = self._lost(f"`{short(argv)}` was silent for {silence_s:g} s")
        try:
            while data := channel.recv(CHUNK_BYTES):
                yield data
        except TimeoutError:
            raise silent from None
        if not channel.status_event.wait(silence_s):
            raise silent
        self._exit_code(channel, argv)  # a broken link ends the stream too, but its last piece is not a line

    def _hear(self, answer: login_shell.Answer, code: int, errors: Callable[[], bytes]) -> None:
        """Keeps what the login shell printed. Raises MachineUnfit where the command never began."""
        if not answer.begun:
            raise login_shell.refused(self._name, answer.noise, errors(), code)
        self._greeting = login_shell.shown(answer.noise) or self._greeting

    def _start(self, argv: Sequence[str], deadline_s: float) -> Channel:
        try:
            return self._link.channel(deadline_s)
        except OSError as error:
            raise self._lost(f"cannot start `{short(argv)}`: {error}") from error

    def _exit_code(self, channel: Channel, argv: Sequence[str]) -> int:
        code = int(channel.exit_status)
        if code == -1 and self._link.is_lost():
            raise self._lost(f"the link broke while `{short(argv)}` ran")
        return code

    def _lost(self, what: str) -> LinkLost:
        return LinkLost(f"{self._name}: {what}", hint="the machine goes on by itself; try again")


def _feed(channel: Channel, chunks: Iterable[bytes]) -> None:
    """In a thread: a command may write more than the window holds before it reads its stdin."""
    try:
        for chunk in chunks:
            channel.sendall(chunk)
        channel.shutdown_write()
    except (OSError, EOFError, ValueError, paramiko.SSHException):
        # The command ended without reading all, or the link is gone: the reading side finds out which.
        shut(channel)


def _collect_stderr(channel: Channel) -> Callable[[], bytes]:
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

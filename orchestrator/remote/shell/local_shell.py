"""A Shell on this very machine, by subprocess: the same promises without SSH.

Relative paths start at the home folder, as they do after an SSH login. Each command has a process group of its own, so
that a deadline ends all of it; what detached itself (the agent's jobs) is left alone.

    with LocalShell().lines(["python3", "agent.pyz", "follow"], stdin=question) as lines: ...
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from orchestrator.core.errors import CommandFailed, LinkLost
from orchestrator.core.ports import Address, Result
from orchestrator.remote.shell import put_and_get
from orchestrator.remote.shell.login_shell import checked
from orchestrator.remote.shell.put_and_get import short
from orchestrator.remote.whole_files import landing

CHUNK_BYTES = 64 * 1024
FLOOD_BYTES = 64 << 20
HERE = Address()


class LocalShell:
    """This machine; ports.Shell says what each method promises."""

    def __init__(self, address: Address = HERE) -> None:
        self.address = address

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", deadline_s: float = 30.0) -> Result:
        """Code 127: no such command, 126: not executable, as a shell says it; -N: ended by signal N."""
        try:
            process = _start(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            return _not_started(argv, error)
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout=deadline_s)
            except subprocess.TimeoutExpired:
                _kill(process)
                raise LinkLost(f"`{short(argv)}` gave no result within {deadline_s:g} s") from None
        return Result(tuple(argv), process.returncode, stdout, stderr)

    def lines(
        self, argv: Sequence[str], *, stdin: bytes = b"", silence_s: float = 10.0, pulse_s: float = 0.0
    ) -> AbstractContextManager[Iterator[bytes]]:
        return _lines(argv, stdin, silence_s)

    def put(self, local: Path, remote: str, *, mode: int = 0o644, deadline_s: float = 120.0) -> None:
        self._copy(local, self.path(remote), mode)

    def get(self, remote: str, local: Path, *, deadline_s: float = 120.0) -> None:
        self._copy(self.path(remote), local, 0o600)

    def openssh(self) -> Sequence[str] | None:
        return None

    def greeting(self) -> str:
        return ""

    def close(self) -> None:
        """Nothing stays open between calls."""

    def path(self, remote: str) -> Path:
        """Where a path given to this shell lies: relative to the home folder, as after a login."""
        return Path.home() / remote.removeprefix("~/")

    def _copy(self, source: Path, destination: Path, mode: int) -> None:
        if not source.is_file():
            raise CommandFailed(f"no readable file {source}", hint="check the path")
        with source.open("rb") as original, landing(destination, mode=mode) as copy:
            shutil.copyfileobj(original, copy)


def _start(argv: Sequence[str], *, stdin: int | IO[bytes], stderr: int | IO[bytes]) -> subprocess.Popen[bytes]:
    program, *words = checked(argv)
    return subprocess.Popen(
        [os.path.expanduser(program), *words],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=Path.home(),
        start_new_session=True,
    )


def _not_started(argv: Sequence[str], error: OSError) -> Result:
    code = 127 if isinstance(error, FileNotFoundError) else 126
    return Result(tuple(argv), code, b"", f"{argv[0]}: {error.strerror}".encode())


@contextmanager
def _lines(argv: Sequence[str], stdin: bytes, silence_s: float) -> Iterator[Iterator[bytes]]:
    # Files for stdin and stderr: neither can fill up and block while only stdout is read.
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as errors:
        question.write(stdin)
        question.seek(0)
        try:
            process = _start(argv, stdin=question, stderr=errors)
        except OSError as error:
            raise put_and_get.failure(f"`{short(argv)}`", 127, _not_started(argv, error).stderr) from error
        with process:
            try:
                yield _each_line(process, argv, errors, silence_s)
            finally:
                if process.poll() is None:
                    _kill(process)


def _each_line(
    process: subprocess.Popen[bytes], argv: Sequence[str], errors: IO[bytes], silence_s: float
) -> Iterator[bytes]:
    yield from put_and_get.split_lines(_chunks(process, argv, silence_s), FLOOD_BYTES)
    try:
        code = process.wait(silence_s)
    except subprocess.TimeoutExpired:
        raise _silent(argv, silence_s) from None
    if code:
        errors.seek(0)
        raise put_and_get.failure(f"`{short(argv)}`", code, errors.read())


def _chunks(process: subprocess.Popen[bytes], argv: Sequence[str], silence_s: float) -> Iterator[bytes]:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        quiet_until = time.monotonic() + silence_s
        while True:
            if not selector.select(max(0.0, quiet_until - time.monotonic())):
                raise _silent(argv, silence_s)
            if not (data := os.read(process.stdout.fileno(), CHUNK_BYTES)):
                return
            yield data
            # Counted from here: the time the reader takes is not the command's silence.
            quiet_until = time.monotonic() + silence_s


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole process group of the command, children included."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _silent(argv: Sequence[str], silence_s: float) -> LinkLost:
    return LinkLost(f"`{short(argv)}` was silent for {silence_s:g} s", hint="the machine may be overloaded; try again")

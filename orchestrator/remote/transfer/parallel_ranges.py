"""Files of many gigabytes as byte ranges over several `ssh` processes at once, resumed at the byte.

One SSH channel is capped by its 2 MiB window (36 MB/s at 40 ms, measured); four connections carry 2.5 times as much,
and the ciphers of four processes use more than one core. The file grows under a part name whose side file `.ranges`
says how far each range got; only a part whose sha256 is right, whole or range by range, gets the final
name. Files and their meaning are
`transfer.py`'s business; here bytes move.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeAlias

from orchestrator.core.errors import GptctlError, LinkLost, MachineUnfit, UserError, VerificationFailed
from orchestrator.core.ports import Shell
from orchestrator.remote.agent_client.decoding import last_object
from orchestrator.remote.shell import login_shell
from orchestrator.remote.transfer import far_calls, far_program
from orchestrator.remote.transfer_progress import Meter
from orchestrator.remote.whole_files import cannot_write

PARALLEL_FROM_BYTES = 64 << 20
STREAMS = 4
CHUNK_BYTES = 1 << 20
LOOK_EVERY_S = 0.05
STALLED_S = 300.0
"""A link that lives while nothing moves: a hung disk. Long enough for the far side to hash what it has of a range."""
SSH_FAILED = 255
AGAIN = "the file changed meanwhile, or a disk is broken; run the command again: it starts over"


MOST_ANSWER_BYTES = 4096


@dataclass(frozen=True)
class Range:
    """`size_bytes` from `start` on, of which `done_bytes` have arrived; `slot` is its place in the side file."""

    slot: int
    start: int
    size_bytes: int
    done_bytes: int = 0


Pump: TypeAlias = Callable[[Range, "subprocess.Popen[bytes]"], str | None]
"""Moves the bytes of one range through an ssh process; the sha256 that its far side must answer with, if any."""


def split(size_bytes: int) -> list[Range]:
    """Equal ranges: one for files up to 64 MiB, else four. A function of the size alone, so that resuming agrees."""
    streams = STREAMS if size_bytes > PARALLEL_FROM_BYTES else 1
    bounds = [size_bytes * slot // streams for slot in range(streams + 1)]
    return [Range(slot, bounds[slot], bounds[slot + 1] - bounds[slot]) for slot in range(streams)]


def resumed(ranges: Sequence[Range], positions: Sequence[int]) -> list[Range]:
    """The same ranges with what has arrived of each; a position beyond its range counts as nothing."""
    return [
        replace(each, done_bytes=done if done <= each.size_bytes else 0)
        for each, done in zip(ranges, positions, strict=True)
    ]


def push_ranges(shell: Shell, source: Path, part: str, ranges: Sequence[Range], meter: Meter) -> None:
    """Send what is left of each range into the far part file; both sides hash all of it, in passing.

    VerificationFailed: the part holds other bytes than `source`, and must go.
    """

    def one(each: Range, process: subprocess.Popen[bytes]) -> str:
        assert process.stdin is not None
        digest = hashlib.sha256()
        with source.open("rb", buffering=0) as file, process.stdin as pipe:
            far_program.widen(pipe.fileno())
            file.seek(each.start)
            position = 0
            while position < each.size_bytes:
                # What arrived before is hashed again and not sent again.
                edge = each.done_bytes if position < each.done_bytes else each.size_bytes
                data = file.read(min(CHUNK_BYTES, edge - position))
                if not data:
                    break  # it shrank: the far side misses the rest and says so
                digest.update(data)
                if position >= each.done_bytes:
                    write_all(pipe, data)
                    meter.count(len(data))
                position += len(data)
        return digest.hexdigest()

    def argv(each: Range) -> list[str]:
        numbers = (each.slot, each.start, each.done_bytes, each.size_bytes)
        return far_calls.argv(shell, "receive", part, *map(str, numbers))

    try:
        _streams(shell, ranges, argv, one, meter, what=f"send {source.name}")
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}", hint="check the file and its disk") from error


def write_all(pipe: IO[bytes], data: bytes) -> None:
    """An unbuffered pipe takes what it has room for."""
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def pull_ranges(shell: Shell, remote: str, part: Path, ranges: Sequence[Range], meter: Meter) -> None:
    """Fetch what is left of each range into the part file here."""

    def one(each: Range, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        with part.open("r+b", buffering=0) as file, open(f"{part}.ranges", "r+b", buffering=0) as side:
            far_program.widen(process.stdout.fileno())
            done = each.done_bytes
            while done < each.size_bytes and (data := os.read(process.stdout.fileno(), CHUNK_BYTES)):
                data = data[: each.size_bytes - done]  # the manifest's size is the limit, whatever the machine sends
                done += far_program.write_at(file.fileno(), data, each.start + done)
                far_program.mark(side.fileno(), each.slot, done)
                meter.count(len(data))
            # A login shell may print once more when it ends; a machine that never stops sending is cut off.
            extra = 0
            while done == each.size_bytes and (data := os.read(process.stdout.fileno(), CHUNK_BYTES)):
                if (extra := extra + len(data)) > login_shell.NOISE_BYTES:
                    raise VerificationFailed(f"fetch {remote}: more bytes came than the manifest promised", hint=AGAIN)

    def argv(each: Range) -> list[str]:
        offset, left = each.start + each.done_bytes, each.size_bytes - each.done_bytes
        return far_calls.argv(shell, "send", remote, str(offset), str(left))

    try:
        left = [each for each in ranges if each.done_bytes < each.size_bytes]
        _streams(shell, left, argv, one, meter, what=f"fetch {remote}")
    except OSError as error:
        raise cannot_write(part, error) from error


def _streams(
    shell: Shell,
    ranges: Sequence[Range],
    argv: Callable[[Range], list[str]],
    pump: Pump,
    meter: Meter,
    *,
    what: str,
) -> None:
    """One ssh and one thread for each range. The first failure ends all; what arrived stays."""
    ssh = shell.openssh()
    assert ssh is not None, "this machine needs no ssh"
    with ExitStack() as stack:
        streams = []
        for each in ranges:
            errors = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [*ssh, login_shell.COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
            streams.append(_Stream(each, argv(each), process, errors, pump))
            stack.callback(streams[-1].close)
        waiting = list(streams)
        while waiting:
            for stream in [each for each in waiting if each.ended()]:
                stream.check(shell, what)
                waiting.remove(stream)
            meter.tell()
            if meter.quiet_s > STALLED_S:
                raise LinkLost(
                    f"{what}: not a byte moved for {STALLED_S:.0f} s", hint="run the command again: it resumes there"
                )
            time.sleep(LOOK_EVERY_S)


class _Stream:
    """One range on its way: an ssh process and the thread that moves its bytes."""

    def __init__(
        self,
        each: Range,
        argv: Sequence[str],
        process: subprocess.Popen[bytes],
        errors: IO[bytes],
        pump: Pump,
    ) -> None:
        self._argv, self._process, self._errors = argv, process, errors
        self._answer = login_shell.Answer(b"")
        self._trouble: OSError | MachineUnfit | VerificationFailed | None = None
        self._digest: str | None = None
        self._thread = threading.Thread(target=self._run, args=(each, pump), daemon=True)
        self._thread.start()

    def _run(self, each: Range, pump: Pump) -> None:
        try:
            self._begin()
            if self._answer.begun:
                self._digest = pump(each, self._process)
        except BrokenPipeError:
            return  # ssh ended first; its code and words say why
        except (OSError, MachineUnfit, VerificationFailed) as error:
            self._trouble = error
            self._process.kill()

    def _begin(self) -> None:
        """Asks for the command and skips what the login shell prints before it, and no byte more."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._answer = login_shell.Answer(mark := login_shell.new_mark())
        write_all(self._process.stdin, login_shell.first_line(self._argv, mark))
        while not self._answer.begun and (byte := os.read(self._process.stdout.fileno(), 1)):
            self._answer.after(byte)

    def ended(self) -> bool:
        return self._process.poll() is not None and not self._thread.is_alive()

    def close(self) -> None:
        """Whatever happened: no process, no thread and no open file is left."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def check(self, shell: Shell, what: str) -> None:
        """Raise what ended the stream early: our own disk, the link, or the far side."""
        if self._trouble is not None:
            raise self._trouble
        code = self._process.returncode
        if code:
            self._errors.seek(0)
            raise _failure(shell, code, self._errors.read(), what)
        if not self._answer.begun:
            raise login_shell.refused(shell.address.host or what, self._answer.noise, b"", code)
        if self._digest is not None and self._process.stdout is not None:
            arrived = last_object(self._process.stdout.read(MOST_ANSWER_BYTES)).get("sha256")
            if arrived != self._digest:
                raise VerificationFailed(f"{what}: sent sha256 {self._digest}, arrived {arrived}", hint=AGAIN)


def _failure(shell: Shell, code: int, said: bytes, what: str) -> GptctlError:
    if code == SSH_FAILED or b"EOFError: the stream ended" in said:
        words = said.decode(errors="replace").strip().splitlines()
        why = words[-1] if words else "the connection broke"
        return LinkLost(
            f"{what}: {shell.address.host}: {why}", hint="run the command again: it resumes at the byte it reached"
        )
    return far_calls.refused(shell, code, said, what)

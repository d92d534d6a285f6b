"""The two programs that put and get run on a machine, in plain sh: they work before there is an agent or a python.

Values travel as arguments of a fixed script, never inside it. Nothing here connects.

    shell.run(put_argv("/root/.gptctl/agent/agent-1a2b.pyz", 0o644, digest), stdin=data)
"""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from orchestrator.core.errors import CommandFailed, GptctlError, MachineUnfit, VerificationFailed

PUT = """
LC_ALL=C; export LC_ALL; umask 077
case $1 in "~/"*) set -- "$HOME/${1#"~/"}" "$2" "$3";; esac
case $1 in */*) mkdir -p -- "${1%/*}/" || exit;; esac
part=$1.part-$$
trap 'rm -f -- "$part"' EXIT
cat >"$part" && sum=$(sha256sum <"$part") || exit
[ "${sum%% *}" = "$3" ] || { echo "sha256 differs: sent $3, arrived ${sum%% *}" >&2; exit 65; }
chmod -- "$2" "$part" && mv -fT -- "$part" "$1"
"""

GET = """
LC_ALL=C; export LC_ALL
case $1 in "~/"*) set -- "$HOME/${1#"~/"}";; esac
[ -f "$1" ] && [ -r "$1" ] || { echo "no readable file $1" >&2; exit 66; }
size=$(wc -c <"$1") && printf "%d " "$size" && head -c "$size" -- "$1" | sha256sum && head -c "$size" -- "$1"
"""
"""First a line with size and digest. The size is taken once: a log that grows meanwhile arrives as it was."""

DIGEST_DIFFERS = 65
UNFIT = {
    "No space left on device": "its disk is full",
    "Disk quota exceeded": "its quota is used up",
    "Read-only file system": "the file system is read-only",
}


def put_argv(remote: str, mode: int, sha256: str) -> list[str]:
    return ["sh", "-c", PUT, "sh", remote, f"{mode:o}", sha256]


def get_argv(remote: str) -> list[str]:
    return ["sh", "-c", GET, "sh", remote]


def short(argv: Sequence[str]) -> str:
    """Enough of a command to recognise it by in a message."""
    return shlex.join(argv).split("\n")[0][:60]


def split_lines(chunks: Iterable[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Lines without their newline, each as soon as it is whole; what follows the last newline comes at the end."""
    pieces: list[bytes] = []
    held_bytes = 0
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        pieces.append(first)
        held_bytes += len(first)
        for other in others:
            yield b"".join(pieces)
            pieces, held_bytes = [other], len(other)
        if held_bytes > limit_bytes:
            raise flood("a line", limit_bytes)
    if last := b"".join(pieces):
        yield last


def pulsing(stdin: bytes, pulse_s: float, ended: threading.Event) -> Iterator[bytes]:
    """What a command reads: its request and, with pulse_s, a newline every so often for as long as this process lives.
    Over a link that died without a word the command hears nothing more."""
    yield stdin + (b"\n" if pulse_s else b"")
    while pulse_s and not ended.wait(pulse_s):
        yield b"\n"


def flood(what: str, limit_bytes: int) -> VerificationFailed:
    """A machine that never stops sending must not fill our memory or disk."""
    return VerificationFailed(f"{what} is longer than {limit_bytes >> 20} MiB: refused", hint="look at the machine")


def failure(what: str, code: int, stderr: bytes) -> GptctlError:
    """A command's bad ending as the error that names its cause; the evidence is its last lines."""
    said = stderr.decode(errors="replace").strip()
    last = " | ".join(said.splitlines()[-5:])
    for words, reason in UNFIT.items():
        if words in said:
            return MachineUnfit(
                f"{what}: {reason} ({last})", hint="free space there, or choose another folder or machine"
            )
    if code == DIGEST_DIFFERS:
        return VerificationFailed(
            f"{what}: {last}", hint="run the command again; a second failure means a broken disk or memory"
        )
    return CommandFailed(f"{what}: exit code {code}" + (f": {last}" if last else ", without a word"))


class Arrival:
    """The stream GET sends: a line with size and digest, then so many bytes, hashed as they come in."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._promised: str | None = None
        self._left_bytes = 0
        self._start = b""
        self._hash = hashlib.sha256()

    def into(self, file: BinaryIO) -> Callable[[bytes], None]:
        """A sink that writes what follows the first line to the file."""

        def take(data: bytes) -> None:
            if self._promised is None:
                line, newline, data = (self._start + data).partition(b"\n")
                if not newline:
                    self._start = line
                    return
                size, _, digest = line.decode(errors="replace").partition(" ")
                self._left_bytes, self._promised = int(size) if size.isdigit() else 0, digest.split(" ")[0]
            data = data[: self._left_bytes]  # what a login shell prints at its end is not the file's
            self._left_bytes -= len(data)
            self._hash.update(data)
            file.write(data)

        return take

    def verify(self) -> None:
        """VerificationFailed unless exactly the promised bytes were written."""
        if self._promised != self._hash.hexdigest():
            raise VerificationFailed(
                f"{self._what}: sha256 {self._promised} was promised, {self._hash.hexdigest()} arrived",
                hint="the file changed meanwhile, or the disk is broken; run the command again",
            )

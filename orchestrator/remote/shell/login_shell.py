"""How a command reaches a machine whatever its login shell is, and where its answer begins.

sshd hands what we send to the login shell: bash, csh, fish, or a program that runs no commands at all. Each quotes in a
way of its own, and its start-up files may print. So the login shell only ever sees COMMAND, which means the same to all
of them; the real command comes as the first line of stdin, and prints a mark before anything else. What stands before
the mark is the login shell's own, and is shown, never parsed.

    mark = new_mark()
    first_line(["python3", "-c", "print(1)"], mark)      # b"printf '\\\\0012%s\\\\0012' ...; exec python3 -c ...\\n"
    Answer(mark).after(b"Welcome!\\n" + mark + b"1\\n")     # b"1\\n"
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Sequence

from orchestrator.core.errors import MachineUnfit, UserError

COMMAND = """exec /bin/sh -c 'IFS= read -r line && eval "$(printf %b "$line")"'"""
"""No newline, `!` or nested quote: csh, tcsh and fish read it as sh does. `read` takes no byte beyond its line."""

NOISE_BYTES = 1 << 20
SHOWN_CHARACTERS = 300
WRONG_USER = "login as the user"


def checked(argv: Sequence[str]) -> list[str]:
    """The argv, or UserError: a NUL would silently end a word on its way."""
    if any("\0" in word for word in argv):
        raise UserError(f"a NUL byte in the arguments of {argv[0]!r}", hint="no file or run name can have one")
    return list(argv)


def shell_line(argv: Sequence[str]) -> str:
    """The argv as one line for sh. A program under `~/` is one in the far home folder."""
    program, *words = checked(argv)
    under_home = program.startswith("~/")
    start = "~/" + shlex.quote(program[2:]) if under_home else shlex.quote(program)
    return " ".join([start, *map(shlex.quote, words)])


def new_mark() -> bytes:
    """A line that nothing prints by chance."""
    return f"\ngptctl-{secrets.token_hex(8)}\n".encode()


def first_line(argv: Sequence[str], mark: bytes) -> bytes:
    """What COMMAND reads: print the mark, then become the command."""
    script = f"printf '\\n%s\\n' {mark.decode().strip()}; exec {shell_line(argv)}"
    return b"".join(map(_escaped, os.fsencode(script))) + b"\n"


def _escaped(byte: int) -> bytes:
    """As `printf %b` reads it back. A line holds no newline, and old shells mistake some bytes above 127."""
    return bytes([byte]) if 32 <= byte < 127 and byte != ord("\\") else b"\\0%03o" % byte


class Answer:
    """A command's stdout as it comes: drops what stands before the mark, and keeps it as `noise`."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self.begun = False
        self.noise = b""

    def after(self, data: bytes) -> bytes:
        """What of `data` is the command's own. Raises MachineUnfit for a login that prints without end."""
        if self.begun:
            return data
        head, mark, rest = (self.noise + data).partition(self._mark)
        self.begun, self.noise = bool(mark), head
        if len(head) > NOISE_BYTES:
            raise MachineUnfit(
                f"its login shell prints more than {NOISE_BYTES >> 20} MiB before it runs a command: {shown(head)}",
                hint="look at its start-up files (.bashrc, .cshrc, config.fish)",
            )
        return rest


def shown(noise: bytes) -> str:
    """What a login printed, on one line, short enough for a message."""
    words = " | ".join(filter(None, (line.strip() for line in noise.decode(errors="replace").splitlines())))
    return words if len(words) <= SHOWN_CHARACTERS else words[:SHOWN_CHARACTERS] + "..."


def refused(name: str, noise: bytes, stderr: bytes, code: int) -> MachineUnfit:
    """For a login that let us in and ran no command: what the machine said, in its own words."""
    said = shown(noise + b"\n" + stderr)
    words = f"it said: {said}" if said.isprintable() and said else f"it said nothing readable (exit code {code})"
    if WRONG_USER in said.lower():
        return MachineUnfit(
            f"{name} does not run commands for this user; {words}", hint="set `user` in its inventory entry to that one"
        )
    return MachineUnfit(
        f"{name} let gptctl in and ran no command; {words}",
        hint="use a user whose login runs commands: look at its login shell, and at ForceCommand in sshd_config",
    )

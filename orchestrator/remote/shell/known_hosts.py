"""Pinned host keys: who a machine was when we first met it.

One line per key, `IDENTITY KIND BASE64`, which OpenSSH reads as an ordinary known_hosts file. The identity is the
instance id or `[name]:port`, never an address alone: clouds hand the same address to the next customer. Nothing here
connects, decides or talks to the user; `ssh.py` asks and refuses.

    pin(path, "[box]:2222", key); pinned(path, "[box]:2222") == (key,)
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.core.errors import Unreachable, UserError
from orchestrator.remote.whole_files import landing

SAFE_IDENTITY = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]*")
"""No space, comma, `*`, `?`, `!`, `|` or `#`: each means something else to OpenSSH in this file."""

OWN_PROGRAM_S = 60
"""For programs of OpenSSH that connect nowhere: a busy computer may take seconds to start one."""


@dataclass(frozen=True)
class HostKey:
    """A machine's public key: its kind (`ssh-ed25519`) and its bytes in base64, as known_hosts spells them."""

    kind: str
    base64: str

    @property
    def fingerprint(self) -> str:
        """`SHA256:...`, as `ssh-keygen -l` prints it."""
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def checked_identity(identity: str) -> str:
    """The identity as it is written in the file, or UserError for one that OpenSSH would read as a pattern."""
    if not SAFE_IDENTITY.fullmatch(identity):
        raise UserError(
            f"{identity!r} cannot name a machine in a known_hosts file",
            hint="use letters, digits, dots and dashes for host names and addresses",
        )
    return identity.lower()


def pinned(path: Path, identity: str) -> tuple[HostKey, ...]:
    """The keys pinned under this identity; empty where we never met."""
    if not path.exists():
        return ()
    name = checked_identity(identity)
    return tuple(key for other, key in _entries(path.read_text(encoding="utf-8")) if other == name)


def pin(path: Path, identity: str, key: HostKey) -> None:
    """Write the key down, unless the identity has one already: a pinned key is never replaced silently."""
    name = checked_identity(identity)
    with _locked(path):
        if not pinned(path, name):
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(descriptor, "a", encoding="utf-8") as file:
                file.write(f"{name} {key.kind} {key.base64}\n")
                os.fchmod(file.fileno(), 0o600)


def repin(path: Path, identity: str, keys: Sequence[HostKey]) -> None:
    """The identity's keys are exactly these from now on: the old and the new one while a machine changes its key."""
    name = checked_identity(identity)
    with _locked(path):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        others = [line for line in lines if line.split()[:1] != [name]]
        ours = [f"{name} {key.kind} {key.base64}" for key in dict.fromkeys(keys)]
        with landing(path) as file:
            file.write("".join(f"{line}\n" for line in [*others, *ours]).encode())


def vouched(user_file: Path, names: Sequence[str]) -> tuple[HostKey, ...]:
    """The keys the user's own known_hosts has for any of the names. `ssh-keygen -F` reads hashed entries too."""
    if not user_file.exists():
        return ()
    keys: list[HostKey] = []
    for name in names:
        try:
            argv = ["ssh-keygen", "-F", name, "-f", str(user_file)]
            found = subprocess.run(argv, capture_output=True, text=True, timeout=OWN_PROGRAM_S, check=False)
        except subprocess.TimeoutExpired:
            raise Unreachable(f"`{shlex.join(argv)}` did not end within {OWN_PROGRAM_S} s", "try it by hand") from None
        # A line that starts with @revoked or @cert-authority has its marker where the name belongs: never a plain key.
        keys += [key for other, key in _entries(found.stdout) if not other.startswith("@")]
    return tuple(dict.fromkeys(keys))


def _entries(text: str) -> Iterator[tuple[str, HostKey]]:
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 3 and not line.startswith("#"):
            yield fields[0], HostKey(fields[1], fields[2])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two gptctl processes may meet two machines at once."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""Key pairs: the host key that a rented machine gets at birth, and the key we log in with.

A private host key is made and kept in memory: writing it anywhere is up to the caller. Nobody else imports
cryptography.

Example: `new_key_pair("rental").public` -> "ssh-ed25519 AAAA... rental"
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.core.errors import UserError


@dataclass(frozen=True)
class KeyPair:
    """OpenSSH's own texts; the private one ends with a newline."""

    public: str
    private: str = field(repr=False)


def new_key_pair(comment: str) -> KeyPair:
    """A fresh ed25519 pair."""
    # Only now: every command that may drive a run loads this module, and few make a key.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    # Only with it.
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(f"{public} {comment}", private)


def login_key_file(home: Path, ssh_key: str | None) -> Path:
    """The private key we log in with: the host entry's, else gptctl's own."""
    return Path(ssh_key).expanduser() if ssh_key else home / "keys" / "login_ed25519"


def login_public_key(home: Path, ssh_key: str | None) -> str:
    """Its public half, `KIND BASE64`. gptctl's own key is made on first use; UserError for one that cannot be read."""
    file = login_key_file(home, ssh_key)
    if ssh_key is None and not file.exists():
        _write_own_key(file)
    beside = file.with_name(file.name + ".pub")
    try:
        line = beside.read_text(encoding="utf-8") if beside.is_file() else _public_half(file.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"the key {file} cannot be read: {error}",
            hint=f"correct `ssh_key` in the inventory, or put the public half beside it: {beside}",
        ) from error
    words = line.split()
    if len(words) < 2:
        raise UserError(f"{beside} is not a public key", hint=f"ssh-keygen -y -f {file} > {beside}")
    return " ".join(words[:2])


def _public_half(private: bytes) -> str:
    # Only now, as above.
    from cryptography.exceptions import UnsupportedAlgorithm

    # Only with it.
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

    try:
        key = load_ssh_private_key(private, password=None)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _write_own_key(file: Path) -> None:
    """Two processes may do so at once: the first link wins, and both use that key."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(new_key_pair("gptctl").private)
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()

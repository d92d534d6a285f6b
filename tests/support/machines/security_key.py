"""An SSH agent that holds a security key (`sk-ssh-ed25519`), as a FIDO token behind ssh-agent does; the token is here
software. OpenSSH's own agent protocol, as far as a login needs it.

    with SecurityKeyAgent(tmp_path / "agent.sock") as agent:
        (box.folder / "authorized_keys").write_text(agent.public)       # and IdentityAgent in ~/.ssh/config
"""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import threading
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KIND, APPLICATION, TOUCHED = b"sk-ssh-ed25519@openssh.com", b"ssh:", 1
FAILURE, LIST, LISTED, SIGN, SIGNED = 5, 11, 12, 13, 14


class SecurityKeyAgent:
    """Listens at a socket until it is left."""

    def __init__(self, path: Path) -> None:
        self._key = Ed25519PrivateKey.generate()
        point = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._blob = _text(KIND) + _text(point) + _text(APPLICATION)
        self.public = f"{KIND.decode()} {base64.b64encode(self._blob).decode()} token\n"
        self.signed = 0
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        with caller, caller.makefile("rb") as asked:
            while len(head := asked.read(4)) == 4:
                body = asked.read(struct.unpack(">I", head)[0])
                caller.sendall(_text(self._reply(body)))

    def _reply(self, body: bytes) -> bytes:
        if body[0] == LIST:
            return bytes([LISTED]) + struct.pack(">I", 1) + _text(self._blob) + _text(b"token")
        if body[0] != SIGN:
            return bytes([FAILURE])
        rest = body[1:]
        words = []
        for _ in range(2):
            size = struct.unpack(">I", rest[:4])[0]
            words.append(rest[4 : 4 + size])
            rest = rest[4 + size :]
        self.signed += 1
        state = bytes([TOUCHED]) + struct.pack(">I", self.signed)
        proof = hashlib.sha256(APPLICATION).digest() + state + hashlib.sha256(words[1]).digest()
        return bytes([SIGNED]) + _text(_text(KIND) + _text(self._key.sign(proof)) + state)


def _text(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data

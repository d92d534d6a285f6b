"""What a shell over SSH needs of a connection, made by Fabric (`dial.py`) or by OpenSSH (`openssh_link.py`).

Both give channels that behave as paramiko's do: on each runs the one command of `login_shell.COMMAND`.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Channel(Protocol):
    """One running command. `exit_status` -1: a signal ended it, or the link is gone."""

    status_event: threading.Event
    """Set once the command has ended."""
    exit_status: int

    def recv(self, size_bytes: int, /) -> bytes:
        """Some of its stdout; empty at its end. Raises TimeoutError after the time that settimeout gave."""
        ...

    def recv_stderr(self, size_bytes: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...
    def shutdown_write(self) -> None: ...
    def settimeout(self, timeout_s: float, /) -> None: ...
    def close(self) -> None: ...


class Link(Protocol):
    """A connection to one machine, authenticated."""

    def channel(self, deadline_s: float) -> Channel:
        """Starts COMMAND. Raises OSError with the reason where the link is gone."""
        ...

    def is_lost(self) -> bool:
        """Whether the link is down, asked after a channel ended without an exit code. May wait a moment."""
        ...

    def close(self) -> None: ...

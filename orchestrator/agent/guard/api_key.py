"""The API key on this machine: one file in memory, which a reboot loses; see in_memory.py.

Example::

    put(root, "secret"); read(root)        # 'secret'
    forget(root)
"""

from __future__ import annotations

from ..system import memory_files

KIND = "guard"


def path(root: str) -> str:
    """The key's file: one per user and agent folder."""
    return memory_files.path(KIND, root)


def put(root: str, key: str) -> None:
    """Writes the key, mode 0600. Raises Refusal where it could not stay in memory."""
    memory_files.put(KIND, root, key)


def read(root: str) -> str | None:
    """The key; None where there is none."""
    return memory_files.read(KIND, root)


def forget(root: str) -> None:
    """Removes the file; twice is fine."""
    memory_files.forget(KIND, root)

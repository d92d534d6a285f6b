"""A real account of this computer without any right, for what root may do and your users may not. Needs root.

with account(folder / "home") as name: ...      # it can log in by key, and owns its home folder
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def account(home: Path) -> Iterator[str]:
    """Its name; it ends with the block, and its folder stays with whoever made it."""
    name = f"gptctl-{os.getpid()}"
    login = ["--shell", "/bin/sh", "--password", "*"]  # one that is locked may not even log in by its key
    subprocess.run(["useradd", "--no-create-home", "--home-dir", str(home), *login, name], check=True, timeout=60)
    try:
        yield name
    finally:
        subprocess.run(["userdel", "--force", name], check=False, capture_output=True, timeout=60)


def give(folder: Path, name: str) -> None:
    """All of a folder belongs to this account."""
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, name, pwd.getpwnam(name).pw_gid)


@contextmanager
def offline(name: str) -> Iterator[None]:
    """Nothing that this account runs reaches any other machine."""
    rule = ["OUTPUT", "-m", "owner", "--uid-owner", name, "!", "-o", "lo", "-j", "REJECT"]
    subprocess.run(["iptables", "-w", "-I", *rule], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-w", "-D", *rule], check=True, timeout=60)

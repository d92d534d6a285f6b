"""One cloud per state folder: start it detached, find the running one, stop it.

The running server holds the lock on the state folder; server.json has its address. A killed server leaves the lock
free, and the next start takes the same port and key, so that clients and machines continue.

Example: `start_detached(state, arguments)` -> {"url": "http://127.0.0.1:40123", "key_file": ..., "pid": ...}
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict, cast

from orchestrator.rehearsal.machines import processes

SERVER_FILE = "server.json"
KEY_FILE = "api_key"
LOCK_FILE = "lock"
LOG_FILE = "server.log"
UP_WITHIN_S = 20.0
STOP_WITHIN_S = 20.0


class ServerEntry(TypedDict):
    """server.json: where the cloud answers, and on which port its machines do."""

    url: str
    key_file: str
    pid: int
    ssh_port: int


def state_folder(path: Path) -> Path:
    """The state folder; creates it if missing, for its owner alone."""
    os.umask(0o077)
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def api_key(state: Path) -> str:
    """The account's key; the first start creates it, in a file for its owner alone."""
    file = state / KEY_FILE
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        temporary.write_text(f"secret_rehearsal_{secrets.token_hex(16)}\n")
        temporary.chmod(0o600)
        temporary.rename(file)
    return file.read_text().strip()


def take_lock(state: Path) -> int | None:
    """A descriptor that holds the lock until this process ends; None when another cloud has it."""
    descriptor = os.open(state / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def announce(state: Path, url: str, ssh_port: int) -> ServerEntry:
    """Writes server.json: the address of the cloud that runs now."""
    entry: ServerEntry = {"url": url, "key_file": str(state / KEY_FILE), "pid": os.getpid(), "ssh_port": ssh_port}
    temporary = state / f"{SERVER_FILE}.tmp"
    temporary.write_text(json.dumps(entry) + "\n")
    temporary.rename(state / SERVER_FILE)
    return entry


def last_entry(state: Path) -> ServerEntry | None:
    """server.json as the last cloud wrote it, running or not."""
    try:
        return cast(ServerEntry, json.loads((state / SERVER_FILE).read_text()))
    except (FileNotFoundError, ValueError):
        return None


def running(state: Path) -> ServerEntry | None:
    """server.json, if a cloud holds the lock and has written it."""
    descriptor = take_lock(state)
    if descriptor is not None:
        os.close(descriptor)
        return None
    entry = last_entry(state)
    return entry if entry and processes.identity(entry["pid"]) else None


def start_detached(state: Path, arguments: Iterable[str]) -> ServerEntry:
    """Starts a cloud that outlives this process and waits until it answers. Raises RuntimeError with its log."""
    package_root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    with (state / LOG_FILE).open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.rehearsal", "--state", str(state), *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    until = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < until:
        found = running(state)
        if found:
            return found
        if child.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the rehearsal cloud did not start: {(state / LOG_FILE).read_text()[-800:]}")


def stop(state: Path) -> int | None:
    """Stops the server, if one runs, and returns the lock; None when it does not stop. Its machines keep running."""
    found = running(state)
    if found:
        processes.send(found["pid"], signal.SIGTERM)
    return wait_for_lock(state, STOP_WITHIN_S)


def wait_for_lock(state: Path, within_s: float) -> int | None:
    """The lock, once it is free. Threads of a killed server can hold it a moment longer than the process lives."""
    until = time.monotonic() + within_s
    while (descriptor := take_lock(state)) is None and time.monotonic() < until:
        time.sleep(0.02)
    return descriptor


def inject(entry: ServerEntry, script: str) -> None:
    """Arms faults in a running cloud."""
    key = Path(entry["key_file"]).read_text().strip()
    request = urllib.request.Request(
        f"{entry['url']}/rehearsal/inject",
        data=json.dumps({"faults": script}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=UP_WITHIN_S).close()

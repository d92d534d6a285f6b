"""The first process of a machine: starts sshd, runs the commands of the user data, and inherits every orphan.

As a subreaper it is the ancestor of every process that ran on the machine, despite setsid and double forks, so the
cloud can end them all. SIGTERM shuts the operating system down: every process ends, and the bill continues. SIGUSR1
reboots it. A machine whose folder was deleted ends on its own.

Example: `python -m orchestrator.rehearsal.machines.first_process FOLDER`
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from orchestrator.rehearsal.machines import processes
from orchestrator.rehearsal.machines.disk import MEMORY_VARIABLE, POWERED_OFF

PR_SET_CHILD_SUBREAPER = 36
RESTART_PAUSE_S = 0.2
LOOK_EVERY_S = 2.0


class PowerOff(BaseException):
    """A user of the machine shut it down."""


class Reboot(BaseException):
    """A user of the machine rebooted it."""


def main(folder: Path) -> None:
    """Runs until it is killed or powered off."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    (folder / "first_process.pid").write_text(f"{os.getpid()}\n")
    signal.signal(signal.SIGTERM, _power_off)
    signal.signal(signal.SIGUSR1, _reboot)
    threading.Thread(target=_end_without_folder, args=(folder,), daemon=True).start()
    memory = Path(os.environ[MEMORY_VARIABLE])
    while True:
        _forget(memory)
        memory.mkdir(mode=0o700, parents=True)
        try:
            _run(folder)
        except Reboot:
            _end_everything()
        except PowerOff:
            if folder.exists():
                (folder / POWERED_OFF).touch()
            _end_everything()
            return _forget(memory)


def _run(folder: Path) -> None:
    """Keeps sshd running, as an init system does, and reaps processes that end."""
    commands = _commands(folder)
    for argv in commands["every_boot"]:
        _run_command(folder, argv)
    sshd = _start_sshd(folder)
    _run_later(folder, commands["once"])
    while True:
        pid, _ = os.wait()
        if pid == sshd.pid:
            time.sleep(RESTART_PAUSE_S)
            sshd = _start_sshd(folder)


def _power_off(number: int, frame: FrameType | None) -> None:
    raise PowerOff


def _reboot(number: int, frame: FrameType | None) -> None:
    raise Reboot


def _end_without_folder(folder: Path) -> None:
    while folder.exists():
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _end_everything() -> None:
    while found := processes.below(os.getpid()):
        for pid in found:
            processes.send(pid, signal.SIGKILL)
        time.sleep(processes.SWEEP_PAUSE_S)


def _forget(memory: Path) -> None:
    shutil.rmtree(memory, ignore_errors=True)


def _start_sshd(folder: Path) -> subprocess.Popen[bytes]:
    argv = [str(folder / "bin/sshd"), "-D", "-E", str(folder / "sshd.log")]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, env=_environment())


def _commands(folder: Path) -> dict[str, list[list[str]]]:
    """Commands of the user data; forgets those that run once per machine."""
    file = folder / "boot.json"
    none: dict[str, list[list[str]]] = {"every_boot": [], "once": []}
    found = {**none, **(json.loads(file.read_text()) if file.exists() else {})}
    file.write_text(json.dumps({**found, "once": []}))
    return found


def _run_later(folder: Path, commands: list[list[str]]) -> None:
    """Runs them one after another while the machine is already reachable, as cloud-init does at its end."""

    def run() -> None:
        for argv in commands:
            _run_command(folder, argv)

    threading.Thread(target=run, daemon=True).start()


def _run_command(folder: Path, argv: list[str]) -> None:
    subprocess.Popen(argv, cwd=folder / "home", env=_environment(), stdin=subprocess.DEVNULL).wait()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A machine whose launch put the timer of guard `self` on it, as far as the agent can tell: the real program, installed
by the real user data, in front of stand-ins for the three programs that would act on the whole computer.

They stand first on the PATH, as a machine's own programs do, and the timer keeps the paths it found at its first boot:
nothing here can reach this computer's. `off` says how often the machine was powered off.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from orchestrator.stages.machine.first_contact.cloud_init import Timer, user_data

RENTAL = "8xa100-1126-k3f9qa"
STAND_INS = {
    "systemctl": "#!/bin/sh\necho offline; exit 1\n",
    # As sysvinit's: it waits in the foreground, and -c ends the one that waits.
    "shutdown": """#!/bin/sh
echo "$*" >> {folder}/shutdown.log
case "$*" in
    -c) kill $(cat {folder}/waiting); exit ;;
    *+*) echo $$ > {folder}/waiting; exec sleep 600 ;;
esac
echo off >> {folder}/off
""",
    "poweroff": "#!/bin/sh\necho off >> {folder}/off\n",
}


class SelfMachine:
    """`boot()` is what cloud-init does at every boot; `path` is the PATH of every login."""

    def __init__(self, folder: Path, rental: str = RENTAL, *, first_s: int = 5400, without: str = "") -> None:
        self.folder, self.rental = folder, rental
        self.bin = folder / "sbin"
        self.bin.mkdir(parents=True)
        for name, text in STAND_INS.items():
            program = self.bin / name
            program.write_text("#!/bin/sh\nexit 127\n" if name == without else text.format(folder=folder))
            program.chmod(0o755)
        self.path = f"{self.bin}:/usr/bin:/bin"
        config = json.loads(user_data(None, Timer(rental, first_s)).removeprefix("#cloud-config\n"))
        self.bootcmd: list[list[str]] = config["bootcmd"]

    def boot(self) -> None:
        """Runs the commands of the user data, and sees that only this folder's programs were found."""
        for argv in self.bootcmd:
            subprocess.run(argv, env={"PATH": self.path}, check=True, timeout=120)
        settings = (self.folder / "lib" / "gptctl-self" / "settings").read_text()
        for name in STAND_INS:
            assert f"{name}='{self.bin / name}'" in settings, settings

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.bin / "gptctl-self"), *words],
            env={"PATH": self.path}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def left(self) -> tuple[str, str, str]:
        """(rental, what keeps it, seconds or -)."""
        rental, kind, seconds = self.run("left").stdout.split()
        return rental, kind, seconds

    def left_s(self) -> int:
        return int(self.left()[2])

    @property
    def off(self) -> int:
        file = self.folder / "off"
        return file.read_text().count("off") if file.exists() else 0

    def shutdowns(self) -> list[str]:
        """What `shutdown` was called with."""
        return (self.folder / "shutdown.log").read_text().splitlines()

    def kill_timer(self) -> None:
        """Ends the process that waits."""
        pid = int((self.folder / "lib" / "gptctl-self" / "process").read_text().split()[0])
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def reboot(self) -> None:
        """Nothing of before runs any more, and cloud-init runs again."""
        self.kill_timer()
        self.boot()

"""A login node of a real Slurm and the computer that submits to it, for fault rows: `place.start("run", ...)`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import losses, newest_run
from tests.support.clock.waiting import until
from tests.support.machines import known_interpreter
from tests.support.machines.slurm import Slurm
from tests.support.machines.sshd import Sshd

ENTRY = 'python = "{python}"\nprice_per_hour_usd = 3.6\n[hosts.cluster.slurm]\ngres = "gpu:h100:1"\n{more}'
MARK = b"GPTCTL_JOB="


class Place:
    """A login node of the cluster, and this computer."""

    def __init__(self, folder: Path, home: Path, login: Sshd, slurm: Slurm, gptctl: Gptctl) -> None:
        self.folder, self.home, self.login, self.slurm, self.gptctl = folder, home, login, slurm, gptctl
        known_interpreter.plant(login.home / ".gptctl")
        self.describe()

    def describe(self, more: str = "") -> None:
        """Writes the inventory."""
        known = self.login.inventory_entry(machine="1xCPU", extra=ENTRY.format(python=sys.executable, more=more))
        (self.folder / "inventory.toml").write_text(known.replace('provider = "ssh"', 'provider = "slurm"'))

    def start(self, *args: str) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            return subprocess.Popen(gptctl_command(*args), stdout=log, stderr=log, text=True, cwd=self.folder)

    @property
    def log(self) -> Path:
        return self.folder / "background.log"

    def status(self) -> dict[str, Any]:
        (row,) = json.loads(self.gptctl("status", "--json").stdout)["runs"]
        return dict(row)

    def run(self) -> Path:
        """The run's folder here."""
        found = newest_run(self.home)
        assert found is not None
        return self.home / "runs" / found

    def there(self, name: str) -> Path:
        """A file of the job's folder on the cluster."""
        return self.login.home / ".gptctl" / "jobs" / self.run().name / "train" / name

    def starts(self) -> int:
        """How often the job has begun to train."""
        file = self.there("slurm.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return sum(line["event"] == "begin" for line in lines)

    def steps(self) -> int:
        """The newest step that is known here."""
        metrics = self.run() / "metrics.jsonl"
        return int(losses(metrics.parent)[-1][0]) if metrics.exists() and metrics.stat().st_size else 0

    def trains_on(self) -> None:
        """Waits for ten more steps; losses of a start that was lost are dropped meanwhile."""
        began, lowest = self.starts(), self.steps()

        def more() -> bool:
            nonlocal lowest
            lowest = min(lowest, self.steps())
            return self.starts() >= began and self.steps() >= lowest + 10

        until(more, interval_s=0.5)

    def writers(self) -> set[bytes]:
        """The starts of which processes live."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            found |= {each for each in variables if each.startswith(MARK) and self.run().name.encode() in each}
        return found

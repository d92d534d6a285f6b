"""A rental on EC2's stand-in, one row of the fault table: the cloud's books and its account are the oracle."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import gptctl_command
from tests.stories.conftest import digests, end, events, newest_run, wait_until
from tests.support.clouds.ec2_cloud import Ec2Cloud
from tests.support.files.recipes import write_small

UNTOLD = "did not get to its end"


@dataclass
class Ec2Place:
    """A GPTCTL_HOME, a recipe and a host entry named `cloud` on a fresh account. `rows`: the test's report."""

    cloud: Ec2Cloud
    fault: str
    rows: list[tuple[str, object]]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows.append((self.fault, UNTOLD))

    @property
    def home(self) -> Path:
        return Path(self.cloud.env["GPTCTL_HOME"])

    def write(
        self, *, steps: int = 20, every: int = 20, machine: str = "2xCPU", more: str = 'guard = "watcher"'
    ) -> None:
        """The data, the recipe and the inventory."""
        folder = self.cloud.folder
        write_small(folder, steps=steps, every=every, machine="2xCPU")
        (folder / "inventory.toml").write_text(self.cloud.host_entry(machine=machine, more=more))

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        """`gptctl run` of the tiny recipe to its end."""
        return self.cloud.gptctl("run", "tiny.toml", "--host", "cloud", "--yes", *more)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """The same in the background, its words in background.log; other words: another command."""
        argv = gptctl_command(*(words or ("run", "tiny.toml", "--host", "cloud", "--yes")))
        with (self.cloud.folder / "background.log").open("a") as log:
            process = subprocess.Popen(
                argv, env=self.cloud.env, cwd=self.cloud.folder, stdout=log, stderr=log, text=True
            )
        self.started.append(process)
        return process

    def crash(self, at: int, when: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs it until SIGKILL at a write to the ledger; see crashing.py."""
        argv = [sys.executable, "-m", "tests.faults.here.crashing", str(at), when, *args]
        return subprocess.run(
            argv, env=self.cloud.env, cwd=self.cloud.folder, capture_output=True, text=True, timeout=720, check=False
        )

    def close(self) -> None:
        for process in self.started:
            end(process)

    def words(self) -> str:
        """What the command in the background said."""
        return (self.cloud.folder / "background.log").read_text()

    def until(self, *marks: str, deadline_s: float = 480) -> None:
        """Until the newest run's ledger has one of these, such as `stage_started:sync`."""

        def seen() -> bool:
            run_id = newest_run(self.home)
            return run_id is not None and bool({*marks} & {*events(self.home, run_id)})

        wait_until(seen, deadline_s, 0.02)

    def until_step(self, step: int) -> None:
        """Until the mirrored log has that step."""

        def seen() -> bool:
            lines = [line for file in (self.home / "runs").glob("*/metrics.jsonl")
                     for line in file.read_text().splitlines(True) if line.endswith("\n")]  # fmt: skip
            return bool(lines) and json.loads(lines[-1])["step"] >= step

        wait_until(seen, 120, 0.02)

    def newest(self) -> dict[str, Any]:
        """The newest run's row."""
        return dict(json.loads(self.cloud.gptctl("status", "--json").stdout)["runs"][0])

    def check(self, *, outcome: str | None = "finished") -> None:
        """The pass line of the table: bought once per intent, nothing left in the account, nothing lost, our cost is
        the books' or they lie in our interval. Keeps the row."""
        lost, books = self._lost_checkpoints(), self.cloud.books
        alive, buys = len(self.cloud.living()), self.cloud.buys_per_token()
        billed_s = sum(each.billed_s for each in books)
        self.rows.remove((self.fault, UNTOLD))
        self.rows.append((self.fault, f"bought {buys}  alive {alive}  billed {billed_s:>4.0f} s  lost {lost}"))
        assert (alive, lost) == (0, 0) and buys <= 1
        assert self.cloud.left() == {"instances": 0, "volumes": 0, "security groups": 0}
        if outcome is not None:
            assert self.newest()["outcome"] == outcome
            self._check_cost(sum(each.cost_usd for each in books))

    def _lost_checkpoints(self) -> int:
        """Folders that are said to be here and whose bytes are not."""
        lost = 0
        for manifest in self.home.glob("runs/*/checkpoints/step-*/MANIFEST.json"):
            files = json.loads(manifest.read_text())["files"]
            lost += digests(manifest.parent) != {name: entry["sha256"] for name, entry in files.items()}
        return lost

    def _check_cost(self, books_usd: float) -> None:
        with closing(sqlite3.connect(f"file:{self.home}/ledger.db?mode=ro", uri=True)) as connection:
            rentals = [json.loads(data).get("bill") for (data,) in connection.execute("SELECT data FROM rentals")]
        bills = [bill for bill in rentals if bill]
        most, less = sum(bill["cost_usd"] for bill in bills), sum(bill["less_usd"] for bill in bills)
        cent = 0.01
        assert most - less - cent <= books_usd <= most + cent, (most - less, books_usd, most)


def without_credentials(cloud: Ec2Cloud) -> None:
    """As on a computer that never saw AWS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        cloud.env.pop(name)
    cloud.env["AWS_CONFIG_FILE"] = cloud.env["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull

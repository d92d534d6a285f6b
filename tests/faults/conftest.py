"""The fault table: real rentals on the rehearsal cloud, its books as the oracle, one printed line per fault.

    make faults

Each test is one row. `Rehearsal.check()` holds the pass line: machines alive in the cloud are exactly those the product
names, at most one was bought per intent, every verified checkpoint is here, and our cost is the cloud's to the cent or
the cloud's lies inside our interval.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.clouds import RehearsalCloud
from tests.conftest import gptctl_command
from tests.stories.conftest import digests, newest_run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RECIPE = """
extends = "{quickstart}"
name = "tiny"
[model]
context_length = 32
n_layer = 1
n_head = 2
n_embd = 32
[train]
tokens = {tokens}
global_batch = 8
log_every = 5
checkpoint_every = 20
validate_every = 20
[data.validation]
tokens = 2_048
[machines.8xA100-40GB-simulated]
micro_batch = 4
"""
HOST = """
[hosts.cloud]
provider = "rehearsal"
machine = "8xA100-40GB-simulated"
guard = "{guard}"
python = "{python}"
max_cost_usd = 10
{more}
"""
rows: list[str] = []
passed: list[str] = []


@dataclass
class Rehearsal:
    """A cloud, a GPTCTL_HOME and a host entry named `cloud`; everything real, everything temporary."""

    folder: Path
    cloud: RehearsalCloud
    fault: str
    env: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def write(self, *, steps: int = 60, guard: str = "watcher", more: str = "") -> None:
        """The recipe and the inventory."""
        quickstart = REPOSITORY / "recipes" / "quickstart.toml"
        (self.folder / "tiny.toml").write_text(RECIPE.format(quickstart=quickstart, tokens=steps * 256))
        (self.folder / "inventory.toml").write_text(HOST.format(guard=guard, python=sys.executable, more=more))

    def gptctl(self, *args: str, deadline_s: float = 180) -> subprocess.CompletedProcess[str]:
        """Runs the real command line to its end."""
        return subprocess.run(
            gptctl_command(*args), env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=deadline_s,
            check=False,
        )  # fmt: skip

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Runs it in the background, its words in background.log."""
        with (self.folder / "background.log").open("a") as log:
            return subprocess.Popen(
                gptctl_command(*args), env=self.env, cwd=self.folder, stdout=log, stderr=log, text=True
            )

    def run(self, *more: str, inject: str = "") -> subprocess.CompletedProcess[str]:
        """`gptctl run` of the tiny recipe on the cloud."""
        if inject:
            self.cloud.inject(inject)
        return self.gptctl("run", "tiny.toml", "--host", "cloud", "--yes", *more)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.gptctl("status", "--json").stdout))

    def newest(self) -> dict[str, Any]:
        """The newest run's row."""
        return dict(self.status()["runs"][0])

    def run_id(self) -> str:
        found = newest_run(self.home)
        assert found is not None
        return found

    def check(self, *, alive: Sequence[str] = (), outcome: str | None = "finished", lost: int = 0) -> None:
        """The pass line; prints and keeps the row."""
        books = self.cloud.books()
        buys = max(books["launches_by_intent"].values(), default=0)
        ours = [row for row in books["instances"] if not row["foreign"]]
        living = sorted(row["id"] for row in ours if row["alive"])
        billed_s = sum(row["billed_minutes"] * row["minute_s"] for row in ours)
        missing = self._lost_checkpoints()
        rows.append(f"{self.fault:<58} buys {buys}  alive {len(living)}  billed {billed_s:>4.0f} s  lost {missing}")
        assert buys <= 1, books["launches_by_intent"]
        assert living == sorted(alive)
        assert missing == lost
        self._check_deadlines(ours)
        if outcome is not None:
            assert self.newest()["outcome"] == outcome
        if not living:
            self._check_cost(sum(row["cost_cents"] for row in ours))
        passed.append(self.fault)

    def _lost_checkpoints(self) -> int:
        """Checkpoints that were said to be safe and whose bytes are not here."""
        safe = [run["safe_step"] for run in self.status()["runs"] if run["safe_step"]]
        if not safe:
            return 0
        folder = self.home / "runs" / self.run_id() / "checkpoints"
        here = [path for path in folder.glob("step-*") if (path / "MANIFEST.json").exists()]
        whole = 0
        for path in here:
            manifest = json.loads((path / "MANIFEST.json").read_text())["files"]
            whole += digests(path) == {name: entry["sha256"] for name, entry in manifest.items()}
        return len(here) - whole + (not here)

    def _check_deadlines(self, ours: Sequence[dict[str, Any]]) -> None:
        """No machine cost a second past what its name announced, a watcher's five minutes and a period included."""
        for row in ours:
            if row["terminated_at"] and "-until-" in row["name"]:
                assert row["terminated_at"] <= int(row["name"].rpartition("-")[2]) + 300 + 600

    def _check_cost(self, cents: int) -> None:
        """Ours is the cloud's to the cent, or the cloud's lies in our interval."""
        rentals = [rental for rental in self._rentals() if rental]
        most = sum(bill["cost_usd"] for bill in rentals)
        least = most - sum(bill["less_usd"] for bill in rentals)
        assert round(least * 100) - 1 <= cents <= round(most * 100) + 1, (least, cents, most)

    def _rentals(self) -> list[dict[str, Any]]:
        import sqlite3

        with sqlite3.connect(f"file:{self.home}/ledger.db?mode=ro", uri=True) as connection:
            found = connection.execute("SELECT data FROM rentals").fetchall()
        return [json.loads(data).get("bill") for (data,) in found]


@pytest.fixture
def rehearse(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Rehearsal]]:
    """`rehearse("F17 launch ok, response lost")`: a fresh cloud, home and host."""
    clouds = []

    def make(fault: str, *options: str, boot_s: float = 0.3, **entry: Any) -> Rehearsal:
        cloud = RehearsalCloud(tmp_path / "cloud", *options, boot_s=boot_s)
        cloud.__enter__()
        clouds.append(cloud)
        user = tmp_path / "user-home"
        user.mkdir(exist_ok=True)
        made = Rehearsal(tmp_path, cloud, fault)
        made.env = {
            **os.environ,
            "GPTCTL_HOME": str(tmp_path / "home"),
            "GPTCTL_REHEARSAL": str(cloud.state),
            "HOME": str(user),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        made.write(**entry)
        return made

    yield make
    for cloud in clouds:
        cloud.__exit__()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, and the line that counts."""
    if rows:
        terminalreporter.section("faults")
        for row in rows:
            terminalreporter.write_line(row)
        terminalreporter.write_line(f"{len(rows)} faults, {len(passed)} survived")


def wait_for(what: Callable[[], Any], deadline_s: float = 60) -> Any:
    """The first true value."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("not in time")

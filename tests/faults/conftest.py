"""The fault table: real rentals on the rehearsal cloud, its books as the oracle, one printed line per fault.

    make faults

Each test is one row. `Rehearsal.check()` holds the pass line: machines alive in the cloud are exactly those the product
names, at most one was bought per intent, every verified checkpoint is here, and our cost is the cloud's to the cent or
the cloud's lies inside our interval.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import gptctl_command
from tests.faults import table
from tests.stories.conftest import digests, end, events, newest_run, wait_until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.recipes import SIMULATED, write_small
from tests.support.files.repository import REPOSITORY
from tests.support.machines.sshd import free_address

CLOCK = Path(__file__).resolve().parent / "clock"
HOST = """
[hosts.cloud]
provider = "rehearsal"
machine = "{machine}"
guard = "{guard}"
python = "{python}"
max_cost_usd = {most_usd}
"""
WAITING: tuple[str, ...] = ()
STILL_BILLING = 7
ROUNDED_CENTS = 0.51
"""By which the cloud's books, in whole cents per machine, may be above the exact amount."""
OUR_FRAME = re.compile(r'File "[^"]*\borchestrator/')
"""In a traceback of gptctl, here or on the machine; those of ranks and torchrun, which lost a peer, have none."""
UNTOLD = "did not get to its end"


PLACES = pytest.StashKey[list["Rehearsal"]]()


@dataclass
class Rehearsal:
    """A cloud, a GPTCTL_HOME and a host entry named `cloud`; everything real, everything temporary."""

    folder: Path
    cloud: RehearsalCloud
    fault: str
    env: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    """The row as it is printed; one dict for all rows of a test."""
    code: int = -1
    """Exit code of the last command that ended."""
    said: str = ""
    """What that command printed."""
    stored: frozenset[str] = frozenset()
    """What the test saw in a store: RUN/step-000060."""

    @property
    def home(self) -> Path:
        return Path(self.env["GPTCTL_HOME"])

    def write(
        self,
        *,
        steps: int = 60,
        every: int = 20,
        guard: str = "watcher",
        python: str = sys.executable,
        most_usd: float = 10,
        machine: str = SIMULATED,
    ) -> None:
        """The data, the recipe and the inventory."""
        write_small(self.folder, steps=steps, every=every, machine=machine)
        host = HOST.format(machine=machine, guard=guard, python=python, most_usd=most_usd)
        (self.folder / "inventory.toml").write_text(host)

    def gptctl(self, *args: str, deadline_s: float = 720) -> subprocess.CompletedProcess[str]:
        """Runs the real command line to its end."""
        done = subprocess.run(
            gptctl_command(*args), env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=deadline_s,
            check=False,
        )  # fmt: skip
        if args[0] != "status":
            self.code, self.said = done.returncode, done.stdout + done.stderr
        return done

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Runs it in the background, its words in background.log."""
        with (self.folder / "background.log").open("a") as log:
            started = subprocess.Popen(
                gptctl_command(*args), env=self.env, cwd=self.folder, stdout=log, stderr=log, text=True
            )
        self.started.append(started)
        return started

    def crash(self, at: int, when: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs it until SIGKILL at a write to the ledger; see crashing.py."""
        argv = [sys.executable, "-m", "tests.faults.here.crashing", str(at), when, *args]
        return subprocess.run(
            argv, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=720, check=False
        )

    def begin(self, *more: str) -> subprocess.Popen[str]:
        """`gptctl run` of the tiny recipe in the background."""
        return self.start("run", "tiny.toml", "--host", "cloud", "--yes", *more)

    def wait(self, process: subprocess.Popen[str], deadline_s: float = 480) -> int:
        """The exit code of a run in the background."""
        self.code = process.wait(deadline_s)
        self.said = self.words()
        return self.code

    def until(self, *marks: str, deadline_s: float = 360) -> None:
        """Until the newest run's ledger has one of these, such as `stage_started:sync`."""

        def seen() -> bool:
            run_id = newest_run(self.home)
            return run_id is not None and bool({*marks} & {*events(self.home, run_id)})

        wait_until(seen, deadline_s, 0.01)

    def killed_at(self, *marks: str) -> None:
        """Runs in the background until one of these events, and ends it by SIGKILL."""
        process = self.begin()
        try:
            self.until(*marks)
        finally:
            end(process)

    def trained(self, step: int) -> bool:
        """Whether the log that is mirrored here has that step."""
        for file in (self.home / "runs").glob("*/metrics.jsonl"):
            steps = [json.loads(line)["step"] for line in file.read_text().splitlines(True) if line.endswith("\n")]
            return bool(steps) and steps[-1] >= step
        return False

    def exit_file(self) -> Path:
        """Where the machine says how the newest run's training ended."""
        return self.cloud.home(self.machine()) / ".gptctl" / "jobs" / self.run_id() / "train" / "exit.json"

    def trains_nowhere(self) -> bool:
        """Whether every training that began on a machine has said how it ended."""
        jobs = self.cloud.state.glob("machines/*/home/.gptctl/jobs/*/train")
        return all((job / "exit.json").exists() for job in jobs)

    def words(self) -> str:
        """What the runs in the background said."""
        return (self.folder / "background.log").read_text()

    def machine(self) -> str:
        """The id of the one living machine of ours."""
        (found,) = (row["id"] for row in self.cloud.books()["instances"] if row["alive"] and not row["foreign"])
        return str(found)

    def address(self, machine: str) -> str:
        """Where that machine answers."""
        (found,) = (row["ip"] for row in self.cloud.get("instances") if row["id"] == machine)
        return str(found)

    @contextmanager
    def no_network(self, *, api: bool = True, machine: str | None = None) -> Iterator[None]:
        """Every packet to and from every machine, or the one with this id, and the API, is dropped without a word.
        Needs root."""
        whose = "127.0.0.0/8" if machine is None else self.address(machine)
        ports = [str(self.cloud.entry["ssh_port"])] + [self.cloud.entry["url"].rpartition(":")[2]] * api
        sides = (("-d", "--dport"), ("-s", "--sport"))
        rules = [["INPUT", "-p", "tcp", end, whose, at, port, "-j", "DROP"] for port in ports for end, at in sides]
        try:
            for rule in rules:
                subprocess.run(["iptables", "-w", "-I", *rule], check=True, timeout=80)
            yield
        finally:
            for rule in rules:
                subprocess.run(["iptables", "-w", "-D", *rule], check=False, timeout=80)

    @contextmanager
    def caller_at(self, address: str) -> Iterator[None]:
        """New connections to the machines come from this address. Needs root."""
        port = str(self.cloud.entry["ssh_port"])
        rule = ["POSTROUTING", "-o", "lo", "-p", "tcp", "--dport", port, "-j", "SNAT", "--to-source", address]
        try:
            subprocess.run(["iptables", "-w", "-t", "nat", "-I", *rule], check=True, timeout=80)
            yield
        finally:
            subprocess.run(["iptables", "-w", "-t", "nat", "-D", *rule], check=False, timeout=80)

    def run(self, *more: str, inject: str = "", deadline_s: float = 720) -> subprocess.CompletedProcess[str]:
        """`gptctl run` of the tiny recipe on the cloud."""
        if inject:
            self.cloud.inject(inject)
        return self.gptctl("run", "tiny.toml", "--host", "cloud", "--yes", *more, deadline_s=deadline_s)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.gptctl("status", "--json").stdout))

    def newest(self) -> dict[str, Any]:
        """The newest run's row."""
        return dict(self.status()["runs"][0])

    def run_id(self) -> str:
        found = newest_run(self.home)
        assert found is not None
        return found

    def check(self, *, alive: Sequence[str] = (), outcome: str | None = "finished", priced: bool = True) -> None:
        """The pass line; keeps the row. Not priced: the ledger that knew the price is lost."""
        books = self.cloud.books()
        missing = self._lost_checkpoints()
        self.summed_up(books, missing)
        ours = [row for row in books["instances"] if not row["foreign"]]
        living = sorted(row["id"] for row in ours if row["alive"])
        assert max(books["launches_by_intent"].values(), default=0) <= 1
        assert living == sorted(alive)
        assert missing == 0
        self._check_deadlines(ours)
        if outcome is not None:
            assert self.newest()["outcome"] == outcome
        if priced and not living:
            self._check_cost(sum(row["cost_cents"] for row in ours))

    def settled(self, *, listed: bool = False, bought: int = 1) -> bool:
        """The pass line under lies: the machines alive are those that the last command named with exit 7 (listed:
        with any exit code), no more were bought than `bought`, and our cost is at least the cloud's."""
        books = self.cloud.ask("GET", "/rehearsal/books")[1]  # by the cloud's clock, which a test may have moved
        ours = [row for row in books["instances"] if not row["foreign"]]
        cents, our_cents = self.summed_up(books)
        living = {row["id"] for row in ours if row["alive"]}
        named = {each for each in living if each in self.said} if listed or self.code == STILL_BILLING else set()
        assert named == living, (self.code, self.said)
        assert len(ours) <= bought, self.said
        assert our_cents >= cents - ROUNDED_CENTS * len(ours), self.said
        assert not OUR_FRAME.search(self.said), self.said
        return True

    def summed_up(self, books: dict[str, Any], missing: int = 0) -> tuple[int, float]:
        """Keeps the row's figures; returns the cost in cents by the cloud's books, and by our ledger."""
        ours = [row for row in books["instances"] if not row["foreign"]]
        alive = sum(row["alive"] for row in ours)
        cents = sum(row["cost_cents"] for row in ours)
        our_cents = 100 * sum(run["cost_usd"] or 0 for run in self.runs())
        code = self.started[-1].returncode if self.code < 0 and self.started else self.code
        self.figures[self.fault] = (
            f"bought {len(ours)}  alive {alive}  theirs {cents:>4} c  ours {our_cents:>4.0f} c  exit {code}"
            f"  lost {missing}"
        )
        return cents, our_cents

    def runs(self) -> list[dict[str, Any]]:
        """Rows of `gptctl status`; none where the ledger is gone or damaged."""
        done = self.gptctl("status", "--json")
        return list(json.loads(done.stdout)["runs"]) if done.returncode in (0, STILL_BILLING) else []

    def _lost_checkpoints(self) -> int:
        """Checkpoints that were said to be safe and whose bytes are neither here nor in a store."""
        lost = 0
        for run in self.status()["runs"]:
            folder = self.home / "runs" / run["id"] / "checkpoints"
            here = [path for path in folder.glob("step-*") if (path / "MANIFEST.json").exists()]
            lost += sum(not whole(path) for path in here)
            known = {*self.stored, *(f"{run['id']}/{path.name}" for path in here)}
            lost += run["safe_step"] is not None and f"{run['id']}/step-{run['safe_step']:06d}" not in known
        return lost

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
        room = ROUNDED_CENTS * len(rentals)
        assert least * 100 - room <= cents <= most * 100 + room, (least, cents, most)

    def _rentals(self) -> list[dict[str, Any]]:
        if not (self.home / "ledger.db").exists():
            return []
        with closing(sqlite3.connect(f"file:{self.home}/ledger.db?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT data FROM rentals").fetchall()
        return [json.loads(data).get("bill") for (data,) in found]


def whole(checkpoint: Path) -> bool:
    """Whether every file has the bytes that the manifest promises."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())["files"]
    return digests(checkpoint) == {name: entry["sha256"] for name, entry in manifest.items()}


@pytest.fixture(autouse=True)
def every_core(all_cores: None) -> None:
    """Faults are tried on the whole computer: their waits were measured there."""


@pytest.fixture
def rehearse(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Rehearsal]]:
    """`rehearse("F17 launch ok, response lost")`: a fresh cloud, home and host."""
    made = request.node.stash.setdefault(PLACES, [])

    def make(
        fault: str, *options: str, boot_s: float = 0.3, env: Mapping[str, str] | None = None, **entry: Any
    ) -> Rehearsal:
        cloud = RehearsalCloud(tmp_path / "cloud", f"--ssh-port={free_address()[1]}", *options, boot_s=boot_s, env=env)
        cloud.__enter__()
        user = tmp_path / "user-home"
        user.mkdir(exist_ok=True)
        place = Rehearsal(tmp_path, cloud, fault, figures={fault: UNTOLD})
        made.append(place)
        place.env = {
            **os.environ,
            "GPTCTL_HOME": str(tmp_path / "home"),
            "GPTCTL_REHEARSAL": str(cloud.state),
            "HOME": str(user),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            **(env or {}),
        }
        place.write(**entry)
        return place

    yield make
    for place in made:
        for process in place.started:
            end(process)
        place.cloud.__exit__()


PYTHON = """#!/bin/sh
# The python3 of a machine whose clocks a test moves, the agent's included, which runs isolated.
export GPTCTL_TEST_WALL={wall} GPTCTL_TEST_STEADY={steady}
[ "$1" = -I ] && exec {python} -I -S {clock}/isolated.py "$0" "$@"
export PYTHONPATH="{clock}${{PYTHONPATH:+:$PYTHONPATH}}"
exec {python} "$@"
"""


class Clocks:
    """Clocks that a test moves: `python` is that of the machines, `env` for the command line and the cloud."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.ahead_s = 0.0
        self.wall, self.steady = folder / "wall", folder / "steady"
        self.python = folder / "python3"
        self.env = {
            "GPTCTL_TEST_WALL": str(self.wall),
            "GPTCTL_TEST_STEADY": str(self.steady),
            "PYTHONPATH": f"{REPOSITORY}:{CLOCK}",
        }
        # On a machine, which is awake, all clocks go on with the wall's.
        text = PYTHON.format(wall=self.wall, steady=self.wall, python=sys.executable, clock=CLOCK)
        self.python.write_text(text)
        self.python.chmod(0o755)

    def move_on(self, seconds: float) -> bool:
        """Puts all clocks forward by so much more; False, for a wait that goes on."""
        self.ahead_s += seconds
        self.move(self.ahead_s)
        return False

    def move(self, seconds: float, *, asleep: bool = False) -> None:
        """Puts all clocks forward; of a laptop that is asleep only the wall's."""
        for file in (self.wall, *([] if asleep else [self.steady])):
            file.with_suffix(".new").write_text(str(seconds))
            file.with_suffix(".new").replace(file)


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    """`rehearse("...", f"--python={clocks.python}", env=clocks.env, python=str(clocks.python))`, then `move()`."""
    return Clocks(tmp_path / "clocks")


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`row("F14 ...")`: a row without a cloud, on which nothing is bought."""
    return lambda fault: request.node.user_properties.append((fault, "bought 0  alive 0"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """The rows of a test go with its report."""
    if call.when == "call" and "rehearse" in getattr(item, "fixturenames", ()):
        for place in item.stash.get(PLACES, []):
            item.user_properties += place.figures.items()
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Each row as soon as it is known, into the file GPTCTL_FAULT_ROWS: batches add up, and a killed one keeps its."""
    file = os.environ.get("GPTCTL_FAULT_ROWS")
    if file and report.when == "call" and "PYTEST_XDIST_WORKER" not in os.environ:
        with Path(file).open("a", encoding="utf-8") as rows:
            for fault, figures in report.user_properties:
                rows.write(table.line(fault, figures, passed=report.passed) + "\n")
            if report.failed:
                rows.write(f"    {report.nodeid}\n    {str(report.longrepr)[-1500:]!r}\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, what waits for EC2, and the line that counts."""
    told = {kind: terminalreporter.stats.get(kind, []) for kind in ("passed", "failed")}
    rows = {
        kind: [row for report in reports if report.when == "call" for row in report.user_properties]
        for kind, reports in told.items()
    }
    if not any(rows.values()):
        return
    terminalreporter.section("faults")
    for kind in ("passed", "failed"):
        for fault, figures in rows[kind]:
            terminalreporter.write_line(table.line(fault, figures, passed=kind == "passed"))
    for fault in WAITING:
        terminalreporter.write_line(f"{fault:<62} waiting")
    told_rows = [(fault, figures + table.FAILED * (kind == "failed")) for kind in rows for fault, figures in rows[kind]]
    for text in table.matrix(dict(told_rows)):
        terminalreporter.write_line(text)
    terminalreporter.write_line(f"{sum(map(len, rows.values()))} faults, {len(rows['passed'])} survived")

"""What the stories share: a recipe that trains in seconds, and looks into the ledger and the machine's own records."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock.waiting import PATIENCE, until
from tests.support.files.repository import REPOSITORY

TINY = """
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
checkpoint_every = 40
validate_every = 40
[data.validation]
tokens = 8_192
[machines.1xCPU]
micro_batch = 4
[machines.2xCPU]
micro_batch = 4
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., str]:
    """`tiny(steps=120)`: path of a recipe of that many steps of 256 tokens, a few milliseconds each."""

    def write(steps: int = 120) -> str:
        path = tmp_path / f"tiny-{steps}.toml"
        path.write_text(TINY.format(quickstart=REPOSITORY / "recipes" / "quickstart.toml", tokens=steps * 256))
        return str(path)

    return write


@pytest.fixture
def as_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], None]]:
    """`as_left(root)`: makes the agent's folder on a machine what an earlier run left there, for stories that are not
    about provisioning. Which interpreter trains is known, because an earlier story found it out (it imports torch)."""
    known = tmp_path_factory.getbasetemp() / "known-envs"
    known.mkdir(exist_ok=True)
    roots: list[Path] = []

    def plant(root: Path) -> None:
        (root / "envs").mkdir(parents=True, mode=0o700)
        for record in known.iterdir():
            shutil.copy(record, root / "envs")
        roots.append(root)

    yield plant
    for record in [path for root in roots for path in root.glob("envs/*.json")]:
        shutil.copy(record, known)


@pytest.fixture
def one_core() -> Iterator[None]:
    """What the test starts computes on one core, each worker's on another: a rank of two threads, which spin while they
    wait for each other, crawls on a busy machine (measured: 3 s a step instead of milliseconds)."""
    cores = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture
def known_machine(one_core: None, gptctl_home: Path, tmp_path: Path, as_left: Callable[[Path], None]) -> None:
    """Host `local` as an earlier run left it, with one rank: for stories that are about neither."""
    (tmp_path / "inventory.toml").write_text('[hosts.local]\nmachine = "1xCPU"\n')
    as_left(gptctl_home / "machine")


def events(home: Path, run_id: str) -> list[str]:
    """`stage_finished:sync` and so on, in order, as another process sees them."""
    with sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True, timeout=10) as connection:
        rows = connection.execute("SELECT kind, stage FROM events WHERE run_id = ? ORDER BY id", (run_id,)).fetchall()
    return [f"{kind}:{stage}" for kind, stage in rows]


def newest_run(home: Path) -> str | None:
    """The id of the newest run, or None while there is no ledger or no run."""
    if not (home / "ledger.db").exists():
        return None
    try:
        with sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True, timeout=10) as connection:
            row = connection.execute("SELECT id FROM runs ORDER BY created_at DESC LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        return None  # the schema is not written yet
    return row[0] if row else None


def wait_until(what: Callable[[], Any], deadline_s: float, interval_s: float = 0.02) -> Any:
    """The first true value of `what`, or an assertion with what was waited for. deadline_s: on a machine of its own; it
    ends a wait that hangs, and says nothing of speed."""
    return until(what, PATIENCE * deadline_s, interval_s)


def starts(machine_folder: Path, run_id: str) -> int:
    """How many training processes the agent ever started for this run, by its own record."""
    record = machine_folder / "jobs" / run_id / "train" / "starts.jsonl"
    return len(record.read_text().splitlines()) if record.exists() else 0


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of metrics.jsonl, exactly as written."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def digests(checkpoint: Path) -> dict[str, str]:
    """sha256 of each file of a checkpoint folder that its manifest lists."""
    names = json.loads((checkpoint / "MANIFEST.json").read_text())["files"]
    return {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}


def end(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and reaped."""
    process.kill()
    process.wait()

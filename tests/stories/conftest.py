"""What the stories share: a recipe that trains in seconds, and looks into the ledger and the machine's own records."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock.waiting import PATIENCE, until
from tests.support.files.recipes import SMALL, write_tokens
from tests.support.files.repository import REPOSITORY
from tests.support.machines import known_interpreter

TINY = """{base}
name = "tiny"
{model}
[train]
tokens = {tokens}
global_batch = 8
learning_rate = 5e-3
precision = "fp32"
log_every = 5
checkpoint_every = {every}
validate_every = {every}
[data.validation]
tokens = 8_192
[eval]
prompts = ["def "]
[machines.1xCPU]
micro_batch = 4
[machines.2xCPU]
micro_batch = 4
"""
READY = """[data]
source = "{folder}"
tokenizer = "bytes"
order = "shuffled"
"""
READY_BYTES = {"train.bin": 200_000, "val.bin": 40_000}


def write_tiny(path: Path, steps: int, *, prepares: bool = False) -> None:
    """A recipe of so many steps of 256 tokens, a few milliseconds each, on token files beside it, with a checkpoint
    every 40 or five in all; prepares: on text that the run prepares first, as the quickstart does."""
    if prepares:
        base, data = f'extends = "{REPOSITORY / "recipes" / "quickstart.toml"}"', ""
    else:
        folder = path.parent / "tokens-of-tiny"
        for name, size_bytes in READY_BYTES.items():
            write_tokens(folder / name, size_bytes)
        base, data = "", READY.format(folder=folder)
    path.write_text(TINY.format(base=base, model=SMALL, tokens=steps * 256, every=max(40, steps // 5)) + data)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., str]:
    """`tiny(steps=120)`: path of such a recipe."""

    def write(steps: int = 120, *, prepares: bool = False) -> str:
        path = tmp_path / f"tiny-{steps}.toml"
        write_tiny(path, steps, prepares=prepares)
        return str(path)

    return write


@pytest.fixture
def known_machine(gptctl_home: Path, tmp_path: Path) -> None:
    """Host `local` as an earlier run left it, with one rank: for stories that are about neither."""
    (tmp_path / "inventory.toml").write_text('[hosts.local]\nmachine = "1xCPU"\n')
    known_interpreter.plant(gptctl_home / "machine")


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

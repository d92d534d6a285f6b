"""A rented machine whose laptop is gone ends itself. The oracle is the cloud's own books."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stories.conftest import wait_until
from tests.stories.rented import BOX, SETTINGS, cloud, ended, gptctl, killed_when
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.canary import below, holders, of_processes

__all__ = ["cloud"]

LEASE_S = 16


@pytest.fixture
def recipe(tiny: Callable[..., str], tmp_path: Path) -> Path:
    path = tmp_path / "guarded.toml"
    path.write_text(f'extends = "{tiny(300)}"\nname = "guarded"\n{SETTINGS}')
    (tmp_path / "inventory.toml").write_text(BOX)
    return path


def told(home: Path, kind: str, stage: str) -> bool:
    """Whether the ledger has that event."""
    if not (home / "ledger.db").exists():
        return False
    with sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True, timeout=10) as connection:
        try:
            found = connection.execute("SELECT 1 FROM events WHERE kind = ? AND stage = ?", (kind, stage)).fetchone()
        except sqlite3.OperationalError:
            return False  # the schema is not written yet
    return found is not None


def rental_data(home: Path) -> dict[str, Any]:
    with sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True, timeout=10) as connection:
        return dict(json.loads(connection.execute("SELECT data FROM rentals").fetchone()[0]))


@pytest.mark.nightly
def test_killed_while_preparing_the_machine_ends_itself_with_its_lease(
    tmp_path: Path, cloud: RehearsalCloud, recipe: Path
) -> None:
    home = tmp_path / "home"
    process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=LEASE_S)
    run = killed_when(process, tmp_path, lambda: told(home, "stage_finished", "acquire"))
    assert rental_data(home)["guard"]["kind"] == "key-on-box"
    assert len(cloud.books()["alive"]) == 1
    wait_until(lambda: not cloud.books()["alive"], 10 * LEASE_S)

    resumed = ended(tmp_path, cloud, "resume", run, lease_s=LEASE_S)
    err = resumed.stderr
    assert resumed.returncode == 6, resumed.stdout + err
    assert "its guard ended" in err and "nothing had been trained" in err
    assert sum(cloud.books()["launches_by_intent"].values()) == 1
    assert cloud.books()["alive"] == []


def answers(ssh_argv: list[str]) -> bool:
    """Whether the machine's sshd still lets anybody in."""
    argv = [*ssh_argv, "true"]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.nightly  # by day tests/contract/guard holds lease, hold and end on the guard's own process
def test_killed_while_training_the_machine_trains_on_holds_and_ends_itself(
    tmp_path: Path, cloud: RehearsalCloud, recipe: Path
) -> None:
    home = tmp_path / "home"
    process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=LEASE_S)
    run = killed_when(process, tmp_path, lambda: (home / "runs").glob("*/metrics.jsonl") and trained(home, 50))
    (instance_id,) = cloud.books()["alive"]
    argv = cloud.ssh_argv(instance_id)
    (row,) = json.loads(ended(tmp_path, cloud, "status", "--json", lease_s=LEASE_S).stdout)["runs"]
    assert row["guard"]["armed"] and row["guard"]["acts_at"] <= row["guard"]["ends_at"]
    exit_file = cloud.home(instance_id) / ".gptctl" / "jobs" / run / "train" / "exit.json"
    wait_until(exit_file.exists, 60)
    assert json.loads(exit_file.read_text())["outcome"] == "finished"
    wait_until(lambda: not cloud.books()["alive"], 10 * LEASE_S)
    wait_until(lambda: [asked["status"] for asked in cloud.requests("/terminate")] == [200], 10)  # logged when answered
    wait_until(lambda: not answers(argv), 20)  # its sshd outlives the cloud's answer by a moment

    announced = rental_data(home)["guard"]
    assert announced["armed"] and cloud.row(instance_id)["terminated_at"] <= announced["ends_at"]
    resumed = ended(tmp_path, cloud, "resume", run, lease_s=LEASE_S)
    err = resumed.stderr
    assert resumed.returncode == 6, resumed.stdout + err
    assert "its guard ended" in err and "is lost" in err
    assert sum(cloud.books()["launches_by_intent"].values()) == 1


def trained(home: Path, step: int) -> bool:
    """Whether the mirror has that step."""
    files = list((home / "runs").glob("*/metrics.jsonl"))
    lines = files[0].read_text().splitlines() if files else []
    return bool(lines) and json.loads(lines[-1])["step"] >= step


@pytest.mark.nightly
def test_the_api_key_is_in_the_accounts_file_and_in_memory_and_nowhere_else(
    tmp_path: Path, cloud: RehearsalCloud, recipe: Path
) -> None:
    process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=600)
    seen: list[Path] = []
    while process.poll() is None:
        seen += holders(cloud.key, of_processes("cmdline", "environ"))
        time.sleep(0.05)  # each look reads all of /proc
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert seen == [] and cloud.key not in out + err
    own_file = Path(cloud.entry["key_file"])
    assert holders(cloud.key, below(tmp_path)) == [own_file]
    assert not holders(cloud.key, below(*Path("/dev/shm").glob("gptctl-*")))

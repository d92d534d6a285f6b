"""The same run on another machine: a real sshd with its own host key, home folder and agent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import digests, end, events, losses, newest_run, starts, wait_until
from tests.support.machines import known_interpreter
from tests.support.machines.sshd import Sshd


@pytest.fixture
def fresh(box: Sshd, tmp_path: Path) -> str:
    """An inventory with the box in it, whose interpreter is the tests' own: two ranks, and nothing is there."""
    path = tmp_path / "inventory.toml"
    path.write_text(box.inventory_entry(extra=f'python = "{sys.executable}"\nprice_per_hour_usd = 0.36\n'))
    return str(path)


@pytest.fixture
def inventory(fresh: str, far: Path) -> str:
    """The same box as an earlier run left it, and one rank."""
    Path(fresh).write_text(Path(fresh).read_text().replace("2xCPU", "1xCPU"))
    known_interpreter.plant(far)
    return fresh


@pytest.fixture
def far(box: Sshd) -> Path:
    """The agent's folder on the box."""
    return box.home / ".gptctl"


def running(home: Path) -> str:
    """The newest run, once its training has logged something here."""
    run_id = wait_until(lambda: newest_run(home), 30)
    metrics = home / "runs" / run_id / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, 90)
    return str(run_id)


def start(home: Path, *args: str) -> subprocess.Popen[str]:
    """gptctl in the background."""
    with (home.parent / "background.log").open("a") as log:
        return subprocess.Popen(gptctl_command(*args), stdout=log, stderr=log, text=True, cwd=home.parent)


@pytest.mark.nightly  # the lid that closes is the story of a box in the gate
def test_train_on_a_box_and_fetch(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], fresh: str, far: Path, tmp_path: Path
) -> None:
    run = gptctl("run", tiny(80), "--host", "box", "--inventory", fresh, "--yes")
    assert run.returncode == 0, run.stderr
    run_id = newest_run(gptctl_home)
    assert run_id is not None

    fetched = gptctl("fetch", "--json", "--to", str(tmp_path / "here"))
    assert fetched.returncode == 0, fetched.stderr
    answer = json.loads(fetched.stdout)
    assert answer["run"] == run_id
    assert all(each["verified"] for each in answer["checkpoints"]) and answer["checkpoints"]
    for each in answer["checkpoints"]:
        there = far / "runs" / run_id / "checkpoints" / Path(each["path"]).name
        assert digests(Path(each["path"])) == digests(there)
    assert (tmp_path / "here" / "checkpoints" / "latest" / "MANIFEST.json").is_file()

    (cost,) = json.loads(gptctl("cost", "--json").stdout)["runs"]
    assert cost["cost_usd"] > 0
    assert losses(gptctl_home / "runs" / run_id) == losses(far / "runs" / run_id)


@pytest.mark.nightly
def test_two_runs_one_after_another_on_one_rental(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], inventory: str
) -> None:
    first = gptctl("run", tiny(20), "--host", "box", "--inventory", inventory, "--yes", "--keep")
    assert first.returncode == 0, first.stderr
    (rental,) = json.loads(gptctl("status", "--json").stdout)["rentals"]
    second = gptctl("run", tiny(30), "--on", rental["id"], "--inventory", inventory, "--yes")
    assert second.returncode == 0, second.stderr
    runs = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert [run["rental"] for run in runs] == [rental["id"], rental["id"]]
    third = gptctl("run", tiny(20), "--on", rental["id"], "--inventory", inventory, "--yes")
    assert third.returncode == 2
    assert "released" in third.stderr


@pytest.mark.nightly
def test_two_at_once_are_refused_naming_the_holder(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], inventory: str
) -> None:
    first = start(gptctl_home, "run", tiny(8000), "--host", "box", "--inventory", inventory, "--yes")
    try:
        holder = running(gptctl_home)
        second = gptctl("run", tiny(20), "--host", "box", "--inventory", inventory, "--yes")
        assert second.returncode == 4
        assert holder in second.stderr
        same = gptctl("resume", holder)
        assert same.returncode == 2
        assert str(first.pid) in same.stderr
    finally:
        assert gptctl("stop", holder, "--yes").returncode == 0
        first.wait(240)
    rows = {row["id"]: row for row in json.loads(gptctl("status", "--json").stdout)["runs"]}
    assert rows[holder]["outcome"] == "stopped"


def test_the_lid_closes_and_opens_again(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], inventory: str, box: Sshd, far: Path
) -> None:
    process = start(gptctl_home, "run", tiny(800), "--host", "box", "--inventory", inventory, "--yes")
    run_id = running(gptctl_home)
    end(process)
    box.cut()
    away = gptctl("status", "--json")
    (row,) = json.loads(away.stdout)["runs"]
    assert (row["state"], row["seen"]) == ("training", "unknown")
    wait_until((far / "runs" / run_id / "exit.json").exists, 120)
    box.heal()
    back = gptctl("resume", run_id)
    assert back.returncode == 0, back.stderr
    assert starts(far, run_id) == 1
    assert losses(gptctl_home / "runs" / run_id) == losses(far / "runs" / run_id)
    latest = gptctl_home / "runs" / run_id / "checkpoints" / "latest"
    assert digests(latest) == digests(far / "runs" / run_id / "checkpoints" / "latest")


@pytest.mark.nightly
def test_a_cut_link_while_following_loses_and_doubles_nothing(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], inventory: str, box: Sshd, far: Path
) -> None:
    process = start(gptctl_home, "run", tiny(3000), "--host", "box", "--inventory", inventory, "--yes")
    run_id = running(gptctl_home)
    box.cut()
    wait_until(lambda: "seen:follow" in events(gptctl_home, run_id), 12)  # noticed within 10 s, and said
    box.heal()
    assert process.wait(480) == 0
    for name in ("metrics.jsonl", "events.jsonl", "train.log"):
        assert (gptctl_home / "runs" / run_id / name).read_bytes() == (far / "runs" / run_id / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("stop", "refused"),
        pytest.param("cut", "box", marks=pytest.mark.nightly),
        pytest.param("key", "host key", marks=pytest.mark.nightly),
    ],
)
def test_a_box_that_cannot_be_reached_ends_the_run_with_one_clear_message(
    change: str, word: str, gptctl: Gptctl, tiny: Callable[..., str], inventory: str, box: Sshd
) -> None:
    if change == "key":
        assert gptctl("run", tiny(5), "--host", "box", "--inventory", inventory, "--yes").returncode == 0
        box.restart(new_host_key=True)
    else:
        getattr(box, change)()
    run = gptctl("run", tiny(10), "--host", "box", "--inventory", inventory, "--yes")
    assert run.returncode == 4
    assert word in run.stderr.lower()
    assert "Traceback" not in run.stderr
    newest = json.loads(gptctl("status", "--json").stdout)["runs"][0]
    assert (newest["state"], newest["outcome"]) == ("ended", "never_started")

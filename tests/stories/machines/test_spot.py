"""A spot machine is taken away at two minutes' notice, and a machine of guard `self` powers itself off. The oracle is
the cloud's own books."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stories.conftest import newest_run, wait_until
from tests.stories.rented import SETTINGS, cloud, ended, gptctl
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

__all__ = ["cloud"]

INVENTORY = """
[hosts.spot]
provider = "rehearsal"
machine = "1xH100-simulated"
guard = "self"
spot = true
[hosts.alone]
provider = "rehearsal"
machine = "1xH100-simulated"
guard = "self"
spot = true
[hosts.local]
machine = "1xCPU"
"""
TOKENS_PER_STEP = 256


@pytest.fixture
def recipe(tiny: Callable[..., str], tmp_path: Path) -> Path:
    path = tmp_path / "spotted.toml"
    path.write_text(f'extends = "{tiny(5000)}"\nname = "spotted"\n{SETTINGS}')
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    return path


def status(tmp_path: Path, cloud: RehearsalCloud) -> dict[str, Any]:
    asked = ended(tmp_path, cloud, "status", "--json")
    assert asked.stdout, asked.stderr
    return dict(json.loads(asked.stdout)["runs"][0])


@pytest.mark.nightly  # contract/stores/test_spot_notice_store.py has the notice in the gate, with a real agent
def test_at_two_minutes_notice_the_checkpoint_is_saved_fetched_and_goes_on_elsewhere(
    tmp_path: Path, cloud: RehearsalCloud, recipe: Path
) -> None:
    noticed = ended(tmp_path, cloud, "run", str(recipe), "--host", "spot", "--inject", "notice@50", "--yes")
    err = noticed.stderr
    assert noticed.returncode == 3, err
    assert cloud.fired() == ["notice"]
    run = newest_run(tmp_path / "home")
    assert "preempted: the provider takes this machine away" in err and f"--resume-from {run}" in err
    assert "preempted" in noticed.stdout
    row = status(tmp_path, cloud)
    step = row["safe_step"]
    assert (row["outcome"], row["state"]) == ("preempted", "ended") and 50 <= step < 5000
    (row,) = [row for row in cloud.books()["instances"] if not row["foreign"]]
    (told,) = [event for event in books_events(cloud) if event["event"] == "notice"]
    assert row["terminated_at"] < told["taken_at"], "it was given back before it was taken"
    again = ended(
        tmp_path, cloud, "run", str(recipe), "--host", "local", "--resume-from", str(run), "--yes",
        "--set", f"train.tokens={(step + 5) * TOKENS_PER_STEP}",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    metrics = (tmp_path / "home" / "runs" / str(newest_run(tmp_path / "home")) / "metrics.jsonl").read_text()
    assert json.loads(metrics.splitlines()[0])["step"] > step


def books_events(cloud: RehearsalCloud) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cloud.state / "books.jsonl").read_text().splitlines()]


@pytest.mark.nightly
def test_with_the_laptop_gone_a_machine_without_a_key_powers_itself_off_and_is_terminated(
    tmp_path: Path, cloud: RehearsalCloud, recipe: Path
) -> None:
    process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "alone", "--yes", lease_s=20)
    home = tmp_path / "home"

    def trained() -> bool:
        run = newest_run(home)
        metrics = home / "runs" / str(run) / "metrics.jsonl"
        return run is not None and metrics.exists() and len(metrics.read_text().splitlines()) >= 3

    wait_until(lambda: process.poll() is not None or trained(), 90)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    row = wait_until(lambda: (row := status(tmp_path, cloud))["guard"]["armed"] and row, 30)
    assert row["guard"]["kind"] == "self" and row["guard"]["ends_at"] >= row["guard"]["acts_at"]
    (alive,) = cloud.books()["alive"]
    assert row["rental"] in (cloud.machine_folder(alive) / "lib" / "gptctl-self" / "settings").read_text()
    for supervisor in cloud.home(alive).glob(".gptctl/jobs/*/train/state.json"):
        for pid in trainers(json.loads(supervisor.read_text())):
            os.kill(pid, signal.SIGKILL)  # nothing progresses any more, and nobody follows
    wait_until(lambda: not cloud.books()["alive"], 90)
    assert gptctl(tmp_path, cloud, "resume", lease_s=20).wait(240) == 6
    assert status(tmp_path, cloud)["outcome"] == "limit"


def trainers(state: dict[str, Any]) -> list[int]:
    return [state[name]["pid"] for name in ("supervisor", "program") if state.get(name)]


def test_halt_is_billed_on_and_power_off_is_not(cloud: RehearsalCloud) -> None:
    tags = [{"key": "on-power-off", "value": "terminate"}]
    halted, off, other = cloud.up(tags=tags), cloud.up(tags=tags), cloud.up()
    for machine, word in ((halted, "halt"), (off, "poweroff"), (other, "poweroff")):
        cloud.ssh(machine, word)
    wait_until(lambda: off not in cloud.books()["alive"], 30)
    assert sorted(cloud.books()["alive"]) == sorted([halted, other])

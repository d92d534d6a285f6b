"""A drill on the rehearsal cloud: a machine that is left to its guard, with one that works and with none at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.config.recipe import load_recipe
from orchestrator.core.machines import machine_type
from orchestrator.core.planning.planner import make_plan
from orchestrator.fleet.guard_drill import LEASE_S, drill_plan, patience_s
from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import end, newest_run
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

INVENTORY = """
[hosts.sim]
provider = "rehearsal"
machine = "8xA100-40GB-simulated"
guard = "watcher"

[hosts.self-ending]
provider = "rehearsal"
machine = "8xA100-40GB-simulated"
guard = "key-on-box"

[hosts.bare]
provider = "rehearsal"
machine = "8xA100-40GB-simulated"
"""
WATCHER = """
import time
from orchestrator.core.fleet import orphans
orphans.GRACE_S = 1.0                      # five minutes, for people
from orchestrator.cli.app import app
while True:
    try:
        app(["orphans", "--reap", "--yes"])
    except SystemExit:
        time.sleep(0.5)
"""
"""The watcher as a timer calls it, every half second instead of every five minutes."""
WORDS = ("--drill", "--yes", "--json")


@pytest.fixture
def cloud(tmp_path: Path, gptctl_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalCloud]:
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    monkeypatch.setenv("GPTCTL_REHEARSAL", str(tmp_path / "cloud"))
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    with RehearsalCloud(tmp_path / "cloud", minute_s=1) as running:
        yield running


@pytest.fixture
def watcher(cloud: RehearsalCloud, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, "-c", WATCHER], cwd=tmp_path, text=True, stdout=quiet, stderr=quiet)
    yield process
    end(process)


def told_to_end(cloud: RehearsalCloud) -> int:
    return len(cloud.requests("/terminate"))


def drill_in(answer: str) -> dict[str, Any]:
    return dict(json.loads(answer)["drill"])


def settled(gptctl: Gptctl, run: str) -> tuple[str, str, float]:
    """State of the rental, state of the run, and what `cost` says of it."""
    found = json.loads(gptctl("status", run, "--json").stdout)
    (row,), (rental,) = found["runs"], found["rentals"]
    (cost,) = json.loads(gptctl("cost", run, "--json").stdout)["runs"]
    return rental["state"], row["state"], cost["cost_usd"]


@pytest.mark.nightly
def test_a_watcher_ends_it_and_the_bill_is_settled(
    cloud: RehearsalCloud, watcher: subprocess.Popen[str], gptctl: Gptctl
) -> None:
    done = gptctl("check", "sim", *WORDS, "--lease-s", "12")
    assert done.returncode == 0, done.stdout + done.stderr
    drilled = drill_in(done.stdout)
    assert watcher.poll() is None
    assert drilled["died"] and drilled["guard"] == "watcher"
    (row,) = cloud.books()["instances"]
    assert (row["id"], row["alive"]) == (drilled["instance_id"], False)
    assert drilled["ends_at"] - 1 <= row["terminated_at"] <= drilled["gone_at"]
    assert abs(drilled["ends_at"] - drilled["armed_at"] - 12) < 5
    state = settled(gptctl, drilled["run"])
    assert state[:2] == ("released", "ended") and state[2] == pytest.approx(drilled["cost_usd"])
    assert told_to_end(cloud) >= 1  # by the watcher; settling the bill orders it by its id once more


@pytest.mark.nightly
def test_with_no_watcher_it_says_so_and_ends_the_machine(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    done = gptctl("check", "sim", "--drill", "--yes", "--lease-s", "3")
    assert done.returncode == 7, done.stdout + done.stderr
    (bought,) = cloud.books()["instances"]
    assert f"{bought['id']} did NOT end" in done.stdout and not bought["alive"]
    assert "does not work" in done.stderr and "no sign of a watcher" in done.stderr
    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert (row["guard"]["kind"], row["recipe"]) == ("watcher", "drill")
    assert settled(gptctl, row["id"])[:2] == ("released", "ended") and row["cost_usd"] > 0


@pytest.mark.nightly
def test_a_machine_with_the_key_ends_itself(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    done = gptctl("check", "self-ending", *WORDS, "--lease-s", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    drilled = drill_in(done.stdout)
    assert drilled["died"] and drilled["guard"] == "key-on-box" and cloud.books()["alive"] == []
    assert settled(gptctl, drilled["run"])[:2] == ("released", "ended")


@pytest.mark.nightly
def test_ctrl_c_says_what_ends_it_and_resuming_a_drill_only_gives_it_back(
    cloud: RehearsalCloud, gptctl: Gptctl, gptctl_home: Path, tmp_path: Path
) -> None:
    argv = gptctl_command("check", "sim", "--drill", "--yes", "--lease-s", "600")
    process = subprocess.Popen(argv, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "still listed" in line:
            process.send_signal(signal.SIGINT)
            break
    err = " ".join(("".join(said) + process.communicate(timeout=240)[1]).split())
    (machine,) = cloud.books()["alive"]
    assert process.returncode == 7 and f"gptctl orphans --reap {machine}" in err and "by its guard at 20" in err, err
    assert told_to_end(cloud) == 0
    run = newest_run(gptctl_home)
    assert run is not None
    resumed = gptctl("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert cloud.books()["alive"] == [] and settled(gptctl, run)[:2] == ("released", "ended")
    assert "launch" not in resumed.stderr


def test_it_asks_with_the_price_and_refuses_what_nothing_guards(cloud: RehearsalCloud, gptctl: Gptctl) -> None:
    asked = gptctl("check", "sim", "--drill")
    assert asked.returncode == 2 and "$15.92/h" in asked.stderr and "--yes" in asked.stderr
    assert "no sign of a watcher, so nothing here would end it" in " ".join(asked.stderr.split())
    bare = gptctl("check", "bare", "--drill", "--yes")
    assert bare.returncode == 2 and "its guard is none" in bare.stderr
    own = gptctl("check", "local", "--drill", "--yes")
    assert own.returncode == 2 and "which is not rented" in own.stderr
    assert gptctl("check", "--drill", "--yes").returncode == 2
    assert cloud.books()["instances"] == []


def test_its_plan_is_the_boot_and_the_lease() -> None:
    machine = machine_type("8xA100-40GB")
    plan = drill_plan(make_plan(load_recipe("quickstart"), None, machine, None, now=time.time()))
    assert plan.hours.total == pytest.approx((machine.boot_minutes or 0) / 60 + 5 / 60)
    assert plan.limits.max_hours == pytest.approx((90 + 5) / 60)
    assert patience_s(LEASE_S) == 15 * 60 and patience_s(3) == pytest.approx(9)

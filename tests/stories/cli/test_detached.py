"""Runs that gptctl leaves: -d, logs -f, status -w, a kept machine and the next run on it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import starts


@pytest.mark.nightly
@pytest.mark.usefixtures("known_machine")
def test_a_detached_run_is_watched_live_and_stopped(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str]
) -> None:
    started = gptctl("run", tiny(300), "--host", "local", "--yes", "-d")
    assert started.returncode == 0, started.stderr
    run_id = started.stdout.strip()
    assert f"gptctl logs {run_id} -f" in started.stderr and f"gptctl stop {run_id}" in started.stderr
    assert not (gptctl_home / "runs" / run_id / "train.log").exists()

    watched = gptctl("logs", run_id, "-f", deadline_s=180)
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout == (gptctl_home / "machine" / "runs" / run_id / "train.log").read_text()
    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert (row["state"], row["step"]) == ("training", 300)  # nobody has looked with the run's lock yet

    resumed = gptctl("resume", run_id, "--json", deadline_s=120)
    assert resumed.returncode == 0, resumed.stderr
    (row,) = json.loads(resumed.stdout)["runs"]
    assert (row["state"], row["outcome"]) == ("ended", "finished")
    assert starts(gptctl_home / "machine", run_id) == 1


@pytest.mark.nightly
@pytest.mark.usefixtures("known_machine")
def test_a_kept_machine_serves_the_next_run(gptctl: Gptctl, tiny: Callable[..., str]) -> None:
    first = gptctl("run", tiny(20), "--host", "local", "--yes", "--keep", "--json")
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    rental = found["rentals"][0]
    assert (found["runs"][0]["state"], rental["state"]) == ("ended", "open")

    longer = ("--on", rental["id"], "--resume-from", found["runs"][0]["id"])
    second = gptctl("run", tiny(30), *longer, "--yes", "--json")
    assert second.returncode == 0, second.stderr
    assert "resuming from step 20" in second.stderr
    found = json.loads(gptctl("status", "--json").stdout)
    assert [row["rental"] for row in found["runs"]] == [rental["id"]] * 2
    assert sorted(found["rentals"][0]["runs"]) == sorted(row["id"] for row in found["runs"])

    assert gptctl("release", found["runs"][1]["id"], "--yes").returncode == 0
    assert json.loads(gptctl("status", "--json").stdout)["rentals"][0]["state"] == "released"
    again = gptctl("run", tiny(30), "--on", rental["id"], "--yes")
    assert again.returncode == 2 and "was released" in again.stderr


def test_status_watches_until_ctrl_c(gptctl_home: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(gptctl_command("status", "-w"), stdout=out, stderr=out, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while (tmp_path / "out").read_text().count("no runs yet") < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(80) == 0
    assert "\x1b" not in (tmp_path / "out").read_text()

"""SIGKILL for the command line, at every stage boundary and at twenty random moments: resume always finishes the run,
exactly one training ever ran, and the curve is the unbroken run's to the last bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import end, events, losses, newest_run, starts, wait_until
from tests.support.machines import known_interpreter

STAGES = ("acquire", "provision", "sync", "launch", "follow", "fetch", "report", "release")
BUSIEST = ("launch", "fetch")
"""Where a second training or a lost checkpoint would come from."""
KILLS = 20


def background(home: Path, *args: str) -> subprocess.Popen[str]:
    """gptctl in the background, its words kept in a file beside the home."""
    with (home.parent / "background.log").open("a") as log:
        return subprocess.Popen(gptctl_command(*args), stdout=log, stderr=log, text=True, cwd=home.parent)


def unbroken(gptctl: Gptctl, recipe: str, tmp_path: Path) -> list[tuple[int, float]]:
    """The curve of the same recipe without any kill, in a home of its own."""
    home = tmp_path / "unbroken-home"
    known_interpreter.plant(home / "machine")
    run = gptctl("run", recipe, "--host", "local", "--yes", env={"GPTCTL_HOME": str(home)})
    assert run.returncode == 0, run.stderr
    return losses(next((home / "runs").iterdir()))


def finish(gptctl: Gptctl, home: Path, run_id: str) -> None:
    """Resumes to the end, and checks what must hold however often the driver died."""
    last = gptctl("resume", run_id)
    assert last.returncode == 0, last.stderr
    assert starts(home / "machine", run_id) == 1
    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert row["step"] == row["total_steps"] and row["loss"] == losses(home / "runs" / run_id)[-1][1]
    assert events(home, run_id)[-1] == "stage_finished:release" or "state_changed:release" in events(home, run_id)


@pytest.mark.nightly
@pytest.mark.usefixtures("known_machine")
def test_killed_at_the_busiest_stage_boundaries(gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str]) -> None:
    run_id = killed_at(BUSIEST, gptctl, gptctl_home, tiny(80))
    assert [step for step, _ in losses(gptctl_home / "runs" / run_id)] == list(range(5, 81, 5))


@pytest.mark.nightly
def test_killed_at_every_stage_boundary(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], tmp_path: Path
) -> None:
    run_id = killed_at(STAGES, gptctl, gptctl_home, tiny(80))
    assert losses(gptctl_home / "runs" / run_id) == unbroken(gptctl, tiny(80), tmp_path)


def killed_at(stages: Sequence[str], gptctl: Gptctl, gptctl_home: Path, recipe: str) -> str:
    """Killed at the beginning and the end of each, and resumed: the run's id."""
    process = background(gptctl_home, "run", recipe, "--host", "local", "--yes")
    run_id = wait_until(lambda: newest_run(gptctl_home), 30)
    for stage in stages:
        for kind in ("stage_started", "stage_finished"):
            mark = f"{kind}:{stage}"
            wait_until(lambda mark=mark: mark in events(gptctl_home, run_id), 60)
            end(process)
            process = background(gptctl_home, "resume", run_id)
    end(process)
    finish(gptctl, gptctl_home, run_id)
    return str(run_id)


@pytest.mark.nightly
def test_killed_at_twenty_random_moments(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], tmp_path: Path
) -> None:
    seed = int(os.environ.get("GPTCTL_TEST_SEED", random.randrange(2**32)))
    print(f"GPTCTL_TEST_SEED={seed}")
    moments, recipe = random.Random(seed), tiny(300)
    process = background(gptctl_home, "run", recipe, "--host", "local", "--yes")
    run_id = wait_until(lambda: newest_run(gptctl_home), 30)
    for _ in range(KILLS):
        try:
            process.wait(moments.uniform(0.3, 3.0))
        except subprocess.TimeoutExpired:
            end(process)
        process = background(gptctl_home, "resume", run_id)
    end(process)
    finish(gptctl, gptctl_home, run_id)
    assert losses(gptctl_home / "runs" / run_id) == unbroken(gptctl, recipe, tmp_path)

"""A training that dies starts again by itself while gptctl follows: the curve is the unbroken run's, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.stories.conftest import losses, newest_run, starts, wait_until
from tests.stories.runs.test_killed_anywhere import background, unbroken

EVERY, STEPS, KILLS = 80, 400, 1
"""The second restart waits for half a minute; the contract tests have it."""


@pytest.mark.nightly
@pytest.mark.usefixtures("known_machine")
def test_a_killed_rank_leaves_no_trace_in_the_curve(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], tmp_path: Path
) -> None:
    recipe = tiny(STEPS)
    process = background(gptctl_home, "run", recipe, "--host", "local", "--yes")
    run_id = str(wait_until(lambda: newest_run(gptctl_home), 30))
    there = gptctl_home / "machine"
    for number in range(1, KILLS + 1):
        wait_until(lambda step=number * EVERY + 20: last_step(there, run_id) >= step, 120)
        state = json.loads((there / "jobs" / run_id / "train" / "state.json").read_text())
        os.kill(state["program"]["pid"], signal.SIGKILL)
        wait_until(lambda count=number + 1: starts(there, run_id) == count, 120)
    assert process.wait(480) == 0, (gptctl_home.parent / "background.log").read_text()
    assert losses(gptctl_home / "runs" / run_id) == unbroken(gptctl, recipe, tmp_path)
    assert (there / "runs" / run_id / "metrics.jsonl").read_bytes() == (
        gptctl_home / "runs" / run_id / "metrics.jsonl"
    ).read_bytes()
    assert starts(there, run_id) == KILLS + 1


def last_step(there: Path, run_id: str) -> int:
    """Of the trainer's own metrics."""
    lines = (there / "runs" / run_id / "metrics.jsonl").read_text().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    return int(steps[-1]) if steps else 0

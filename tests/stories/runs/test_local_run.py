"""The first thing anybody does: train the quickstart's kind of model on this machine, and look at what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.stories.conftest import digests, losses


def test_one_command_from_recipe_to_trained_fetched_costed_model(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str]
) -> None:
    run = gptctl("run", tiny(120, prepares=True), "--host", "local", "--yes")
    assert run.returncode == 0, run.stderr

    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert (row["state"], row["outcome"], row["step"], row["total_steps"]) == ("ended", "finished", 120, 120)
    (cost,) = json.loads(gptctl("cost", "--json").stdout)["runs"]
    assert cost["id"] == row["id"]
    assert set(cost["by_stage"]) >= {"acquire", "provision", "sync", "launch", "follow", "fetch", "report"}

    folder = gptctl_home / "runs" / row["id"]
    curve = losses(folder)
    assert curve[-1][1] < curve[0][1] - 0.5
    manifest = json.loads((folder / "checkpoints" / "latest" / "MANIFEST.json").read_text())
    assert digests(folder / "checkpoints" / "latest") == {
        name: entry["sha256"] for name, entry in manifest["files"].items()
    }
    assert json.loads((folder / "cost.json").read_text())["cost_usd"] == 0
    assert "def " in (folder / "report.md").read_text()  # the sample that the recipe's prompt asked for


@pytest.mark.nightly
def test_an_ended_run_stays_ended(gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str]) -> None:
    first = gptctl("run", tiny(20), "--host", "local", "--yes", "--json")
    assert first.returncode == 0, first.stderr
    before = losses(next((gptctl_home / "runs").iterdir()))
    again = gptctl("resume")
    assert again.returncode == 0
    assert "finished" in again.stdout + again.stderr
    assert losses(next((gptctl_home / "runs").iterdir())) == before

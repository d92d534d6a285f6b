"""A rented machine whose cards do not compute is found out before any data is moved, and given back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stories.rented import BOX, gptctl
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.repository import REPOSITORY

RECIPE = """
extends = "{quickstart}"
name = "unlucky"
[machines."1xH100-simulated"]
micro_batch = 8
"""


@pytest.mark.nightly
def test_a_bad_gpu_ends_the_run_before_it_started_and_the_machine_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text(BOX)
    recipe = tmp_path / "unlucky.toml"
    recipe.write_text(RECIPE.format(quickstart=REPOSITORY / "recipes" / "quickstart.toml"))
    with RehearsalCloud(tmp_path / "cloud") as cloud:
        cloud.inject("bad-gpu")
        process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=300)
        out, err = process.communicate(timeout=480)
        assert process.returncode == 4, out + err
        assert "CUDA error 802" in err and "sync" not in err
        assert cloud.fired() == ["bad-gpu"]
        assert cloud.books()["alive"] == [] and len(cloud.books()["instances"]) == 1

        asked = gptctl(tmp_path, cloud, "status", "--json")
        (run,) = json.loads(asked.communicate(timeout=240)[0])["runs"]
        assert run["outcome"] == "never_started"

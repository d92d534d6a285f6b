"""The quickstart recipe on EC2, bought to destroyed: what is left in the account, and what gptctl had to be allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stories.conftest import digests
from tests.support.clouds.ec2_cloud import Ec2Cloud


@pytest.mark.nightly
def test_quickstart_on_ec2_leaves_nothing_behind(tmp_path: Path) -> None:
    with Ec2Cloud(tmp_path, warm=True) as cloud:
        (tmp_path / "inventory.toml").write_text(cloud.host_entry(more='guard = "watcher"'))
        words = ("--host", "cloud", "--yes", "--set", "train.tokens=16384")
        run = cloud.gptctl("run", "quickstart", *words, deadline_s=400)
        assert run.returncode == 0, run.stderr
        assert "destroyed" in run.stderr

        assert cloud.actions.count("ec2:RunInstances") == len(cloud.books) == 1
        assert cloud.living() == []
        assert cloud.left() == {"instances": 0, "volumes": 0, "security groups": 0}
        policy = json.loads(cloud.gptctl("check", "cloud", "--policy").stdout)
        allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
        assert {*cloud.actions} <= allowed, {*cloud.actions} - allowed

        (checkpoint,) = tmp_path.glob("home/runs/*/checkpoints/step-*")
        manifest = json.loads((checkpoint / "MANIFEST.json").read_text())["files"]
        assert digests(checkpoint) == {name: entry["sha256"] for name, entry in manifest.items()}

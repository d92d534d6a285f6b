"""`train.parallel = "fsdp"` from the command line to the report: two ranks on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.stories.conftest import losses, newest_run
from tests.support.machines import known_interpreter

pytestmark = pytest.mark.nightly


def test_a_sharded_run_is_planned_trained_fetched_and_continued(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], tmp_path: Path
) -> None:
    """The losses are DDP's; its checkpoint samples, and starts a run of one rank that is not sharded."""
    (tmp_path / "inventory.toml").write_text('[hosts.local]\nmachine = "2xCPU"\n')
    known_interpreter.plant(gptctl_home / "machine")
    folders = {}
    for parallel in ("ddp", "fsdp"):
        setting = f"train.parallel={parallel}"
        done = gptctl("run", tiny(80), "--host", "local", "--yes", "--set", setting, "--name", parallel)
        assert done.returncode == 0, done.stderr
        folders[parallel] = gptctl_home / "runs" / str(newest_run(gptctl_home))
    one, other = (losses(folder) for folder in folders.values())
    assert [step for step, _ in one] == [step for step, _ in other]
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in other], abs=1e-5)
    rows = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert [row["outcome"] for row in rows] == ["finished"] * 2
    assert gptctl("sample", "fsdp", "--prompt", "def ").returncode == 0
    evaluated = json.loads(gptctl("eval", "fsdp", "--json").stdout)["evaluations"]
    assert evaluated and all(each["loss"] > 0 for each in evaluated)

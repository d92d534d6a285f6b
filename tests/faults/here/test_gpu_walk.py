"""The whole way on a machine with GPUs that computes nothing: torch's CUDA build on stand-ins for its libraries.

Set GPTCTL_STAND_IN_CUDA to the folder of such a machine: bin/nvidia-smi, venv/bin/python-wrapper. Without one this is
skipped: the stand-in takes 5 GB, and nothing of gptctl needs it. Three minutes on two cores::

    GPTCTL_STAND_IN_CUDA=DIR python -m pytest -m faults tests/faults/here/test_gpu_walk.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import gptctl_command
from tests.support.files.repository import REPOSITORY

MACHINE = os.environ.get("GPTCTL_STAND_IN_CUDA", "")
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not MACHINE, reason="GPTCTL_STAND_IN_CUDA names no folder with a stand-in for CUDA"),
]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_on_two_stand_in_cards_ends_finished_and_says_what_it_ran(tmp_path: Path, parallel: str) -> None:
    recipe = (REPOSITORY / "recipes/quickstart.toml").read_text()
    recipe = recipe.replace("[train]\n", f'[train]\nparallel = "{parallel}"\n', 1)
    (tmp_path / "gpu.toml").write_text(recipe.replace("tokens = 1_638_400", "tokens = 81_920"))
    python = f"{MACHINE}/venv/bin/python-wrapper"
    (tmp_path / "inventory.toml").write_text(f'[hosts.local]\nprovider = "local"\npython = "{python}"\n')
    home = tmp_path / "home"
    env = {**os.environ, "GPTCTL_HOME": str(home), "PATH": f"{MACHINE}/bin:{os.environ['PATH']}", "FAKE_GPUS": "2"}
    done = subprocess.run(
        gptctl_command("run", "gpu.toml", "--host", "local", "--yes", "--json"),
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (events,) = home.glob("runs/*/events.jsonl")
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    started = next(line for line in lines if line["event"] == "started")
    assert (started["ranks"], started["compiled"], started["compile_fault"]) == (2, True, "")
    assert started["attention"] in {"flash", "efficient"}
    assert [line["event"] for line in lines if line["event"] in {"finished", "failed", "warning"}] == ["finished"]

"""A rented machine of the rehearsal cloud and the `gptctl` that drives it, as its own process with a home of its own.

    gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=20)

Recipes that extend another one add SETTINGS: what is kept unfetched is held for seconds only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import gptctl_command
from tests.stories.conftest import digests, newest_run, wait_until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.repository import REPOSITORY
from tests.support.machines import programs

BOX = """
[hosts.box]
provider = "rehearsal"
machine = "1xH100-simulated"
guard = "key-on-box"
"""
SETTINGS = """
[limits]
hold_h = 0.001
[machines."8xA100-40GB-simulated"]
micro_batch = 4
[machines."1xH100-simulated"]
micro_batch = 4
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    """Up for the test, with minutes of a second; its machines know which interpreter trains."""
    with RehearsalCloud(tmp_path / "cloud", minute_s=1, warm=True) as cloud:
        yield cloud


def environment(tmp_path: Path, cloud: RehearsalCloud, lease_s: float) -> dict[str, str]:
    """Of a process whose GPTCTL_HOME is `tmp_path/home`."""
    own = {"GPTCTL_HOME": str(tmp_path / "home"), "GPTCTL_REHEARSAL": str(cloud.state), "GPTCTL_LEASE_S": str(lease_s)}
    return {**os.environ, **own, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)}


def gptctl(tmp_path: Path, cloud: RehearsalCloud, *words: str, lease_s: float = 60) -> subprocess.Popen[str]:
    """Starts it in `tmp_path`: to kill it, or to watch what it does meanwhile."""
    return subprocess.Popen(
        gptctl_command(*words), cwd=tmp_path, env=environment(tmp_path, cloud, lease_s), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(tmp_path: Path, cloud: RehearsalCloud, *words: str, lease_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs it in `tmp_path` to its end."""
    return programs.run_gptctl(*words, cwd=tmp_path, env=environment(tmp_path, cloud, lease_s))


def killed_when(process: subprocess.Popen[str], tmp_path: Path, what: Callable[[], Any]) -> str:
    """SIGKILL as soon as `what` is true; the run's id."""
    try:
        wait_until(lambda: process.poll() is not None or what(), 60)
        assert process.poll() is None, process.communicate()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run = newest_run(tmp_path / "home")
    assert run is not None
    return run


def resumed_and_fetched(tmp_path: Path, cloud: RehearsalCloud, run: str, step: int) -> None:
    """A run that ended with nobody there: resuming reads its end, and its checkpoint of `step` comes here whole."""
    resumed = ended(tmp_path, cloud, "resume", run)
    assert resumed.returncode == 0, resumed.stderr
    fetched = ended(tmp_path, cloud, "fetch", run, "--json")
    assert fetched.returncode == 0, fetched.stderr
    (latest,) = [each for each in json.loads(fetched.stdout)["checkpoints"] if each["step"] == step]
    promised = json.loads((Path(latest["path"]) / "MANIFEST.json").read_text())["files"]
    assert digests(Path(latest["path"])) == {name: entry["sha256"] for name, entry in promised.items()}

"""What a rented machine's minutes are worth: from `active` to the first training step, and looking for lost machines.

    python -m tests.bench.cloud_speed

The cloud is the rehearsal cloud, which boots real machines behind real sshds; its books say when a machine became
active, the trainer's metrics when the first step was done. By hand is what one would type: wait for `active`, rsync the
code, the tokens and the config, then torchrun under nohup over ssh; it checks nothing. Both find an image with torch.
Rounds alternate, the median counts. Never a timed test.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.rehearsal.books.books import read_books
from tests.bench.figure import Figure, at_most, within
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

REPOSITORY = Path(__file__).resolve().parents[2]
FACTOR = 1.5
ORPHANS_LIMIT_S, CALLS_LIMIT = 1.0, 2
OURS, FOREIGN = 100, 100
BOOT_S = 1.0
DEADLINE_S = 150.0
INVENTORY = """
[hosts.box]
provider = "rehearsal"
machine = "8xA100-40GB-simulated"
guard = "key-on-box"
"""
RECIPE = """
extends = "{quickstart}"
name = "first-step"
[train]
tokens = {tokens}
"""
TOKENS = 20 * 16 * 128


class Place:
    """A cloud, a GPTCTL_HOME and an inventory, all temporary."""

    def __init__(self, folder: Path, cloud: RehearsalCloud) -> None:
        self.folder, self.cloud = folder, cloud
        (folder / "inventory.toml").write_text(INVENTORY)
        self.recipe = folder / "first-step.toml"
        self.recipe.write_text(RECIPE.format(quickstart=REPOSITORY / "recipes/quickstart.toml", tokens=TOKENS))
        # Compiled modules are kept, as they are for whoever installed gptctl: else every command compiles all it loads.
        mine = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.env = {
            **mine,
            "GPTCTL_HOME": str(folder / "home"),
            "GPTCTL_REHEARSAL": str(cloud.state),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }

    def gptctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Its exit code is the caller's business."""
        argv = [sys.executable, "-m", "orchestrator", *args]
        return subprocess.run(
            argv, env=self.env, cwd=self.folder, check=False, capture_output=True, text=True, timeout=DEADLINE_S
        )

    def alive(self) -> dict[str, Any] | None:
        """The one machine that is up, as the books have it."""
        return next((row for row in read_books(self.cloud.state)["instances"] if row["alive"]), None)


def first_step(place: Place, rounds: int) -> Figure:
    """Seconds from `active` to the end of the first step. Our first run is not counted: it makes the tokens."""
    mine, theirs = [], []
    with tempfile.TemporaryDirectory() as kept:
        for number in range(rounds + 1):
            mine.append(by_gptctl(place, Path(kept)))
            if number:
                theirs.append(by_hand(place, Path(kept)))
    return at_most(
        "rented machine, active to first step", statistics.median(mine[1:]), statistics.median(theirs), "s",
        "rsync + nohup", FACTOR,
    )  # fmt: skip


def by_gptctl(place: Place, kept: Path) -> float:
    """One run that leaves after the launch; its config and its tokens are kept for the other side."""
    done = place.gptctl("run", str(place.recipe), "--host", "box", "--yes", "-d", "--again")
    row = place.alive()
    if done.returncode or row is None:
        raise RuntimeError(f"gptctl run: exit {done.returncode}\n{done.stderr}")
    (run,) = (place.cloud.home(row["id"]) / ".gptctl" / "runs").iterdir()
    took = time_of_first_step(run) - row["active_at"]
    config = json.loads((run / "config.json").read_text())
    for kind in ("train_files", "validation_files"):
        for file in config["data"][kind]:
            shutil.copy(file, kept)
    (kept / "config.json").write_text(json.dumps(config))
    end(place, row["id"])
    return took


def by_hand(place: Place, kept: Path) -> float:
    """The script one would write: look until active, then two rsyncs and one ssh."""
    cloud = place.cloud
    instance_id = cloud.up(name="by-hand")
    row = cloud.row(instance_id)
    run = cloud.home(instance_id) / "run"
    config = json.loads((kept / "config.json").read_text())
    for kind in ("train_files", "validation_files"):
        config["data"][kind] = [str(run / Path(file).name) for file in config["data"][kind]]
    (kept / "config.json").write_text(json.dumps(config))
    *ssh, target = cloud.ssh_argv(instance_id)
    rsync = f"rsync -a -e {shlex.quote(shlex.join(ssh))}"
    train = (
        f"cd run && PYTHONPATH=.. OMP_NUM_THREADS=1 nohup {sys.executable} -m torch.distributed.run --standalone "
        f"--nproc_per_node=2 -m trainer {run} > train.log 2>&1 < /dev/null &"
    )
    script = f"""
        set -e
        {rsync} {REPOSITORY}/trainer {target}:
        {rsync} {kept}/ {target}:run/
        {shlex.join([*ssh, target])} {shlex.quote(train)}
    """
    subprocess.run(["sh", "-c", script], check=True, timeout=DEADLINE_S, stderr=subprocess.DEVNULL)
    took = time_of_first_step(run) - row["active_at"]
    end(place, instance_id)
    return took


def time_of_first_step(run: Path) -> float:
    """When the trainer wrote the line of step 1."""
    metrics = run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and b"\n" in metrics.read_bytes(), "the first step")
    return float(json.loads(metrics.read_text().splitlines()[0])["time"])


def end(place: Place, instance_id: str) -> None:
    """The machine is not needed any more, whatever runs on it."""
    place.cloud.terminate(instance_id)
    wait_until(lambda: place.alive() is None, "the end of the machine")


def wait_until(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + DEADLINE_S
    while not true():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {DEADLINE_S:.0f} s")
        time.sleep(0.02)


def orphans(place: Place, rounds: int) -> Iterator[Figure]:
    """`gptctl orphans --json` with as many machines of ours as of others in the account; none of them needs to boot."""
    cloud = place.cloud
    cloud.inject(f"stuck-booting*forever,decoys@{FOREIGN}")
    for number in range(OURS):
        tags = {"gptctl-rental": f"r{number}", "gptctl-intent": f"i{number}", "gptctl-ends-at": "4000000000"}
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        cloud.launch(name=f"gptctl-r{number}-until-4000000000", tags=listed)
    count = len(cloud.statuses())
    took, calls = [], 0
    for _ in range(rounds):
        before = requests(cloud)
        began = time.perf_counter()
        done = place.gptctl("orphans", "--json")
        took.append(time.perf_counter() - began)
        calls = max(calls, requests(cloud) - before)
        found = len(json.loads(done.stdout)["machines"])
        if found != OURS:
            raise RuntimeError(f"orphans found {found} machines of ours among {count}\n{done.stderr}")
    yield within(f"gptctl orphans among {count} machines", min(took), "s", ORPHANS_LIMIT_S)
    yield within(f"gptctl orphans among {count} machines, API calls", calls, "", CALLS_LIMIT)


def requests(cloud: RehearsalCloud) -> int:
    """How many the cloud has answered so far."""
    return len(cloud.requests(""))


def figures(*, quick: bool) -> Iterator[Figure]:
    """All of them, in order."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RehearsalCloud(folder / "cloud", boot_s=BOOT_S) as cloud:
            yield first_step(Place(folder, cloud), 1 if quick else 3)
        with RehearsalCloud(folder / "cloud-too", boot_s=BOOT_S) as cloud:
            yield from orphans(Place(folder, cloud), 2 if quick else 5)


if __name__ == "__main__":
    for figure in figures(quick=False):
        print(figure.line(), flush=True)

"""Many rented runs on one cloud, their command line killed at random moments: nothing is left, lost or doubled.

    python -m tests.faults.here.soak --runs 200 --seed 7

Prints one line per run and the sums; exits 1 unless all of them are 0. Each run has 20 steps and a GPTCTL_HOME of its
own, is killed by SIGKILL up to three times, and then resumed to its end. One killed between the written intent and the
order ends as never started: nothing was bought, and gptctl says to run again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import gptctl_command
from tests.faults.conftest import HOST, REPOSITORY
from tests.stories.conftest import digests, newest_run
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.recipes import SIMULATED, write_small
from tests.support.machines.sshd import free_address

STEPS, LOG_EVERY = 20, 5
MOST_KILLS = 3
LONGEST_S = 12.0
"""Of a driver before it is killed: a whole run takes about as long."""
RESUMES = 4


@dataclass(frozen=True)
class Result:
    """What one run came to. `lost`: verified checkpoints that are not here; `wrong`: log lines lost or doubled."""

    kills: int
    outcome: str
    lost: int
    wrong: int


def soak(folder: Path, cloud: RehearsalCloud, runs: int, moments: random.Random) -> list[Result]:
    """One run after another; each is printed."""
    results = []
    for number in range(runs):
        began = time.monotonic()
        results.append(one(folder, cloud, f"home-{number}", moments))
        alive = len(cloud.books()["alive"])
        print(f"{number + 1:>4} {results[-1]} alive {alive}  {time.monotonic() - began:.0f} s", flush=True)
    return results


def one(folder: Path, cloud: RehearsalCloud, name: str, moments: random.Random) -> Result:
    """One run, killed at random, then driven to its end."""
    home = folder / name
    env = {**os.environ, "GPTCTL_HOME": str(home), "GPTCTL_REHEARSAL": str(cloud.state), "OMP_NUM_THREADS": "1",
           "PYTHONPATH": str(REPOSITORY)}  # fmt: skip
    first = ("run", "tiny.toml", "--host", "cloud", "--yes")
    kills = moments.randint(1, MOST_KILLS)
    with (folder / f"{name}.log").open("a") as log:
        for _ in range(kills):
            run_id = newest_run(home)
            argv = gptctl_command("resume", run_id) if run_id else gptctl_command(*first)
            process = subprocess.Popen(argv, env=env, cwd=folder, stdout=log, stderr=log)
            try:
                process.wait(moments.uniform(0, LONGEST_S))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for _ in range(RESUMES):
            run_id = newest_run(home)
            argv = gptctl_command("resume", run_id) if run_id else gptctl_command(*first)
            if subprocess.run(argv, env=env, cwd=folder, stdout=log, stderr=log, check=False).returncode == 0:
                break
    return judged(home, kills)


def judged(home: Path, kills: int) -> Result:
    """From what is on this side's disk, as a user would look."""
    run_id = newest_run(home)
    env = {**os.environ, "GPTCTL_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    said = subprocess.run(gptctl_command("status", "--json"), env=env, capture_output=True, text=True, check=True)
    row: dict[str, Any] = next(each for each in json.loads(said.stdout)["runs"] if each["id"] == run_id)
    folder = home / "runs" / str(run_id)
    lost = 0
    if row["safe_step"]:
        latest = folder / "checkpoints" / f"step-{row['safe_step']:06d}"
        listed = json.loads((latest / "MANIFEST.json").read_text())["files"] if latest.exists() else None
        lost = int(listed is None or digests(latest) != {name: each["sha256"] for name, each in listed.items()})
    metrics = folder / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
    wanted = [1, *range(LOG_EVERY, STEPS + 1, LOG_EVERY)] if row["outcome"] == "finished" else sorted(set(steps))
    wrong = len(set(wanted) ^ set(steps)) + len(steps) - len(set(steps))
    return Result(kills, str(row["outcome"]), lost, wrong)


def main() -> int:
    """Returns 1 unless nothing is left, lost or doubled and every run that was bought finished."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = options.parse_args()
    print(f"{chosen.runs} runs, --seed {chosen.seed}")
    with tempfile.TemporaryDirectory(prefix="gptctl-soak-") as temporary:
        folder = Path(temporary)
        write_small(folder, steps=STEPS, every=10)
        (folder / "inventory.toml").write_text(
            HOST.format(machine=SIMULATED, guard="watcher", python=sys.executable, most_usd=10)
        )
        with RehearsalCloud(folder / "cloud", f"--ssh-port={free_address()[1]}", boot_s=1.0) as cloud:
            results = soak(folder, cloud, chosen.runs, random.Random(chosen.seed))
            books = cloud.books()
    bought, left = books["launches_by_intent"].values(), len(books["alive"])
    lost, wrong = sum(each.lost for each in results), sum(each.wrong for each in results)
    finished = sum(each.outcome == "finished" for each in results)
    unbought = sum(each.outcome == "never_started" for each in results)  # killed before its order was sent
    print(
        f"{chosen.runs} runs, {sum(each.kills for each in results)} kills, "
        f"{finished} finished, {unbought} never started: "
        f"machines left {left}, most bought per intent {max(bought, default=0)}, "
        f"verified checkpoints lost {lost}, lines doubled or lost {wrong}"
    )
    return int(bool(left or lost or wrong) or max(bought, default=0) > 1 or finished + unbought < chosen.runs)


if __name__ == "__main__":
    sys.exit(main())

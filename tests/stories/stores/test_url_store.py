"""A machine stores its checkpoints by itself, in a real S3: nothing of a run is lost that was safe there, and a machine
whose laptop is gone ends when everything is. The oracles are the cloud's own books and what lies in the bucket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import gptctl_command
from tests.stories.conftest import digests, losses, newest_run, wait_until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.clouds.s3_server import SECRET, S3Server
from tests.support.files.canary import below, holders
from tests.support.files.repository import REPOSITORY
from tests.support.machines import programs

INVENTORY = """
[hosts.box]
provider = "rehearsal"
machine = "1xH100-simulated"
guard = "key-on-box"
checkpoint_store = "s3://{bucket}/models"
[hosts.local]
machine = "1xCPU"
"""
EVERY = 300
"""Of the run that is cut off: some seconds, in which one checkpoint is stored and read back."""
STEPS, TOKENS_PER_STEP = 500, 256
SAFE_WITHIN_S = 60
CUT_OFF = f"""
[train]
checkpoint_every = {EVERY}
validate_every = {EVERY}
schedule = "constant"
warmup_fraction = 0.0
"""
SETTINGS = """
[limits]
hold_h = 0.001
[machines."1xH100-simulated"]
micro_batch = 4
[machines.1xCPU]
micro_batch = 4
"""


class Place:
    """A cloud, a bucket, a home and a recipe of so many steps."""

    def __init__(self, folder: Path, cloud: RehearsalCloud, bucket: str) -> None:
        self.folder, self.cloud, self.bucket = folder, cloud, bucket
        self.home = folder / "home"
        (folder / "inventory.toml").write_text(INVENTORY.format(bucket=bucket))

    def environment(self, lease_s: float = 60) -> dict[str, str]:
        own = {"GPTCTL_HOME": str(self.home), "GPTCTL_REHEARSAL": str(self.cloud.state), "GPTCTL_LEASE_S": str(lease_s)}
        return {**os.environ, **own, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "PYTHONPATH": str(REPOSITORY)}

    def begin(self, *words: str, lease_s: float = 60, log: Path | None = None) -> subprocess.Popen[str]:
        """log: what takes its words, where nobody reads them before its end."""
        with log.open("w") if log else contextlib.nullcontext(subprocess.PIPE) as out:
            return subprocess.Popen(
                gptctl_command(*words), cwd=self.folder, stdin=subprocess.DEVNULL, text=True,
                env=self.environment(lease_s), stdout=out, stderr=out,
            )  # fmt: skip

    def gptctl(self, *words: str) -> tuple[int, str, str]:
        done = programs.run_gptctl(*words, cwd=self.folder, env=self.environment(), deadline_s=680)
        return done.returncode, done.stdout, done.stderr

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.gptctl("status", "--json")[1])["runs"][0])

    def run(self) -> str:
        run = newest_run(self.home)
        assert run is not None
        return run

    def trained(self, step: int) -> bool:
        files = list((self.home / "runs").glob("*/metrics.jsonl"))
        lines = files[0].read_text().splitlines() if files else []
        return bool(lines) and int(json.loads(lines[-1])["step"]) >= step


@pytest.fixture
def place(tmp_path: Path, s3: S3Server) -> Iterator[Place]:
    with RehearsalCloud(tmp_path / "cloud", minute_s=1, warm=True) as cloud:
        yield Place(tmp_path, cloud, s3.bucket())


def recipe(place: Place, tiny: Callable[..., str], steps: int, more: str = "") -> str:
    path = place.folder / "kept.toml"
    path.write_text(f'extends = "{tiny(steps)}"\nname = "kept"\n{more}{SETTINGS}')
    return str(path)


def stored(s3: S3Server, place: Place, run: str) -> dict[str, Any]:
    """The index in the bucket, as anybody reads it."""
    answer = s3.client().get_object(Bucket=place.bucket, Key=f"models/{run}/CHECKPOINTS.json")
    return dict(json.loads(answer["Body"].read()))


def steps_stored(s3: S3Server, place: Place) -> list[int]:
    """Of the newest run, by the index in the bucket; none while there is no index."""
    run = newest_run(place.home)
    listed = s3.client().list_objects_v2(Bucket=place.bucket, Prefix=f"models/{run}/CHECKPOINTS.json")
    return [each["step"] for each in stored(s3, place, str(run))["checkpoints"]] if listed["KeyCount"] else []


def seconds_to_safe(home: Path) -> list[float]:
    """From the manifest of each checkpoint on the machine to the agent's mark that the store gave all of it back."""
    marks = home.rglob("step-*/SAFE")
    return [mark.stat().st_mtime - (mark.parent / "MANIFEST.json").stat().st_mtime for mark in marks]


@pytest.mark.nightly
def test_a_machine_taken_without_notice_loses_one_interval_and_another_goes_on_from_the_store(
    place: Place,
    tiny: Callable[..., str],
    s3: S3Server,
) -> None:
    path = recipe(place, tiny, 9000, CUT_OFF)
    process = place.begin("run", path, "--host", "box", "--yes")
    wait_until(lambda: process.poll() is not None or steps_stored(s3, place), 240)
    assert process.poll() is None, process.communicate()
    (instance_id,) = place.cloud.books()["alive"]
    safe_s = wait_until(lambda: seconds_to_safe(place.cloud.home(instance_id)), 60)
    print(f"\nfrom a checkpoint's manifest to safe in the store: {max(safe_s):.1f} s")
    assert max(safe_s) < SAFE_WITHIN_S
    place.cloud.terminate(instance_id)
    _, err = process.communicate(timeout=480)
    assert process.returncode == 3, err
    run = place.run()
    ended = place.status()
    safe, last = ended["safe_step"], losses(place.home / "runs" / run)[-1][0]
    index = stored(s3, place, run)
    assert safe == max(each["step"] for each in index["checkpoints"])
    assert 0 <= last - safe <= EVERY, (last, safe)
    assert holders(SECRET, below(place.cloud.home(instance_id))) == []

    code, _, err = place.gptctl(
        "run", path, "--host", "local", "--resume-from", f"s3://{place.bucket}/models/{run}", "--yes",
        "--set", f"train.tokens={(safe + 20) * TOKENS_PER_STEP}",
    )  # fmt: skip
    assert code == 0, err
    assert f"resuming from step {safe}: s3://" in err
    joined = dict(losses(place.home / "runs" / place.run()))
    before = dict(losses(place.home / "runs" / run))
    assert min(joined) == safe + 5 and max(joined) == safe + 20
    both = sorted(set(joined) & set(before))
    assert all(abs(joined[step] - before[step]) < 2e-3 for step in both), [(joined[s], before[s]) for s in both]

    code, _, err = place.gptctl(
        "run", path, "--host", "local", "--resume-from", run, "--yes", "--set", "model.n_embd=64"
    )
    assert code == 2 and "n_embd is 32, the recipe wants 64" in err


@pytest.mark.nightly  # test_guard_on_box.py is the story of a laptop that stays away, and contract/stores has the store
def test_with_the_laptop_away_at_the_end_the_machine_ends_and_everything_is_fetched_from_the_store(
    place: Place,
    tiny: Callable[..., str],
    s3: S3Server,
) -> None:
    path = recipe(place, tiny, STEPS)
    plan = json.loads(place.gptctl("plan", path, "--host", "box", "--json")[1])
    assert "checkpoint go to s3://" in json.dumps(plan) and "and the machine ends itself" in json.dumps(plan)
    process = place.begin("run", path, "--host", "box", "--yes", lease_s=20)
    wait_until(lambda: process.poll() is not None or place.trained(50), 240)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run = place.run()
    wait_until(lambda: not place.cloud.books()["alive"], 180)
    index = stored(s3, place, run)
    assert index["ended"]["outcome"] == "finished"
    assert max(each["step"] for each in index["checkpoints"]) == STEPS

    code, _, err = place.gptctl("resume", run)
    assert code == 0, err
    ended = place.status()
    assert (ended["outcome"], ended["step"], ended["safe_step"]) == ("finished", STEPS, STEPS)
    assert losses(place.home / "runs" / run)[-1][0] == STEPS
    code, out, err = place.gptctl("fetch", run, "--json")
    assert code == 0, err
    (latest,) = [each for each in json.loads(out)["checkpoints"] if each["step"] == STEPS]
    folder = Path(latest["path"])
    promised = json.loads((folder / "MANIFEST.json").read_text())["files"]
    assert digests(folder) == {name: entry["sha256"] for name, entry in promised.items()}
    assert sum(place.cloud.books()["launches_by_intent"].values()) == 1

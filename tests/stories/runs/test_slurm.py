"""A run on a real Slurm: submitted from here, preempted, out of time, cancelled by others, and billed by its books.

The oracles are Slurm's own accounting and the losses of an unbroken run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import end, losses, newest_run, wait_until
from tests.support.files.repository import REPOSITORY
from tests.support.machines import known_interpreter
from tests.support.machines.reaper import marked
from tests.support.machines.slurm import Slurm
from tests.support.machines.sshd import Sshd, small_disk

pytestmark = pytest.mark.nightly
KILLED = """
import sys, time
from pathlib import Path
from tests.support.machines.slurm import Slurm
with Slurm(Path(sys.argv[1])) as slurm:
    job = slurm.command("sbatch", "--parsable", "--wrap=sleep 600", "-o", "/dev/null").strip()
    slurm.until_state(job, "RUNNING")
    print("trains", flush=True)
    time.sleep(600)
"""
ENTRY = 'python = "{python}"\nprice_per_hour_usd = 3.6\n[hosts.cluster.slurm]\ngres = "gpu:h100:1"\n{more}'


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """One cluster for all of them: it needs some seconds to come up."""
    with tempfile.TemporaryDirectory(prefix="gptctl-slurm-", dir="/dev/shm") as folder, Slurm(Path(folder)) as cluster:
        yield cluster


@pytest.fixture
def login(machines: Callable[..., Sshd], slurm: Slurm) -> Sshd:
    """Its login node, which knows the cluster."""
    return machines("cluster", env=[f"SLURM_CONF={slurm.conf}"])


@pytest.fixture
def entry(login: Sshd, tmp_path: Path) -> Callable[..., None]:
    """Writes the inventory: one rank on one node, with more lines for [hosts.cluster.slurm]."""

    def write(more: str = "", machine: str = "1xCPU") -> None:
        known = login.inventory_entry(machine=machine, extra=ENTRY.format(python=sys.executable, more=more))
        (tmp_path / "inventory.toml").write_text(known.replace('provider = "ssh"', 'provider = "slurm"'))

    known_interpreter.plant(login.home / ".gptctl")
    write()
    return write


def job_of(home: Path, gptctl: Gptctl) -> str:
    """The number of the newest run's job, once it is submitted."""
    run = wait_until(lambda: newest_run(home), 60)

    def number() -> str | None:
        (row,) = json.loads(gptctl("status", run, "--json").stdout)["runs"]
        jobs = (row["job"] or {}).get("jobs") or [None]
        return str(jobs[-1]) if jobs[-1] else None

    return str(wait_until(number, 120, 0.5))


def start(home: Path, *args: str) -> subprocess.Popen[str]:
    with (home.parent / "background.log").open("a") as log:
        return subprocess.Popen(gptctl_command(*args), stdout=log, stderr=log, text=True, cwd=home.parent)


def status(gptctl: Gptctl) -> dict[str, Any]:
    """The newest run's row."""
    rows = json.loads(gptctl("status", "--json").stdout)["runs"]
    return dict(max(rows, key=lambda row: float(row["created_at"])))


@pytest.mark.usefixtures("entry")
def test_submit_follow_and_bill(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm, login: Sshd
) -> None:
    done = gptctl("run", tiny(80), "--host", "cluster", "--yes")
    assert done.returncode == 0, done.stderr
    run = newest_run(gptctl_home)
    job = re.search(r"submitted as job (\d+)", done.stderr + done.stdout)
    assert run is not None and job is not None
    assert losses(gptctl_home / "runs" / run)[-1][0] == 80
    assert (gptctl_home / "runs" / run / "checkpoints" / "latest" / "MANIFEST.json").is_file()
    script = (login.home / ".gptctl" / "runs" / run / "job.sh").read_text()
    assert len(script.splitlines()) <= 30 and "srun" in script and "--requeue" in script
    wait_until(lambda: slurm.attempts(job[1]) == ["COMPLETED"], 60)
    seconds = int(slurm.command("sacct", "-D", "-X", "-n", "-P", "-j", job[1], "-o", "ElapsedRaw"))
    (cost,) = json.loads(gptctl("cost", "--json").stdout)["runs"]
    assert cost["cost_usd"] == pytest.approx(seconds / 1000, abs=2e-3)
    assert cost["gpu_hours"] == pytest.approx(seconds / 3600, abs=2 / 3600)


def steps(home: Path, count: int) -> None:
    """Waits until the newest run has logged so many steps here."""
    run = wait_until(lambda: newest_run(home), 60)
    metrics = home / "runs" / run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and losses(metrics.parent)[-1][0] >= count, 240, 0.5)


@pytest.mark.usefixtures("entry")
def test_preempted_it_saves_is_requeued_and_continues_the_same_curve(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm
) -> None:
    recipe = tiny(200)
    process = start(gptctl_home, "run", recipe, "--host", "cluster", "--yes")
    try:
        steps(gptctl_home, 10)
        job = job_of(gptctl_home, gptctl)
        slurm.command("sbatch", "-p", "urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1", "-o", "/dev/null")
        wait_until(lambda: "REQUEUED" in slurm.attempts(job), 240, 1.0)
        assert process.wait(timeout=480) == 0
    finally:
        end(process)
    run = newest_run(gptctl_home)
    assert run is not None and slurm.attempts(job) == ["REQUEUED", "COMPLETED"]
    (tmp := gptctl_home.parent / "inventory.toml").write_text(tmp.read_text() + '[hosts.local]\nmachine = "1xCPU"\n')
    known_interpreter.plant(gptctl_home / "machine")
    assert gptctl("run", recipe, "--host", "local", "--yes").returncode == 0
    unbroken = newest_run(gptctl_home)
    assert unbroken is not None and unbroken != run
    assert losses(gptctl_home / "runs" / run) == losses(gptctl_home / "runs" / unbroken)


@pytest.mark.usefixtures("entry")
def test_scancel_ends_it_for_good_with_its_checkpoint(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm
) -> None:
    process = start(gptctl_home, "run", tiny(4000), "--host", "cluster", "--yes")
    try:
        steps(gptctl_home, 10)
        job = job_of(gptctl_home, gptctl)
        slurm.command("scancel", job)
        assert process.wait(timeout=480) == 0
    finally:
        end(process)
    run = status(gptctl)
    assert (run["state"], run["outcome"]) == ("ended", "stopped") and "scancel" in run["cause"]
    assert slurm.state(job) in ("CANCELLED", "") and len(slurm.attempts(job)) == 1


def test_out_of_time_it_saves_and_comes_back(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm, entry: Callable[..., None]
) -> None:
    entry('time = "2"\n')
    process = start(gptctl_home, "run", tiny(4000), "--host", "cluster", "--yes")
    try:
        job = job_of(gptctl_home, gptctl)
        wait_until(lambda: "REQUEUED" in slurm.attempts(job), 240, 1.0)
        wait_until(lambda: status(gptctl)["job"]["state"] == "RUNNING", 120, 1.0)
        assert gptctl("stop", "--yes").returncode == 0
        assert process.wait(timeout=480) == 0
    finally:
        end(process)
    assert status(gptctl)["outcome"] == "stopped" and status(gptctl)["step"] > 0


def test_two_nodes_train_the_curve_of_two_ranks_on_one(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm, entry: Callable[..., None]
) -> None:
    entry(machine="2x1xCPU")
    recipe = tiny(40)
    done = gptctl("run", recipe, "--host", "cluster", "--yes")
    assert done.returncode == 0, done.stderr
    spread = newest_run(gptctl_home)
    job = str(status(gptctl)["job"]["jobs"][-1])
    assert slurm.command("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "NNodes,State").split() == ["2|COMPLETED"]
    (tmp := gptctl_home.parent / "inventory.toml").write_text(tmp.read_text() + '[hosts.local]\nmachine = "2xCPU"\n')
    known_interpreter.plant(gptctl_home / "machine")
    assert gptctl("run", recipe, "--host", "local", "--yes", "--again").returncode == 0
    together = newest_run(gptctl_home)
    assert spread and together and spread != together
    assert losses(gptctl_home / "runs" / spread) == losses(gptctl_home / "runs" / together)


@pytest.mark.usefixtures("entry")
def test_a_node_that_fails_costs_the_steps_since_the_checkpoint(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm
) -> None:
    process = start(gptctl_home, "run", tiny(200), "--host", "cluster", "--yes")
    try:
        steps(gptctl_home, 10)
        job = job_of(gptctl_home, gptctl)
        node = slurm.command("squeue", "-h", "-j", job, "-o", "%N").strip()
        slurm.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        try:
            wait_until(lambda: slurm.attempts(job)[0] == "NODE_FAIL", 60, 0.5)
            assert process.wait(timeout=480) == 0
        finally:
            slurm.take_back(node)
    finally:
        end(process)
    assert slurm.attempts(job) == ["NODE_FAIL", "COMPLETED"]
    assert status(gptctl)["outcome"] == "finished" and status(gptctl)["step"] == 200


def test_where_preemption_cancels_it_saves_and_goes_on_all_the_same(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm, entry: Callable[..., None]
) -> None:
    entry('partition = "lost"\n')
    process = start(gptctl_home, "run", tiny(200), "--host", "cluster", "--yes")
    try:
        steps(gptctl_home, 10)
        slurm.command("sbatch", "-p", "urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1", "-o", "/dev/null")
        assert process.wait(timeout=480) == 0
    finally:
        end(process)
    row = status(gptctl)
    ended = [state for job in row["job"]["jobs"] for state in slurm.attempts(str(job))]
    assert row["outcome"] == "finished" and row["step"] == 200
    assert len(ended) == 2 and ended[-1] == "COMPLETED", ended


def test_a_full_quota_is_said_and_loses_no_checkpoint(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], login: Sshd, entry: Callable[..., None]
) -> None:
    """Full from the middle on: the run fails for it, and what was saved before comes home."""
    with small_disk(login.home / "quota", 64 << 20) as folder:
        entry()
        known_interpreter.plant(folder)
        inventory = gptctl_home.parent / "inventory.toml"
        inventory.write_text(
            inventory.read_text().replace("[hosts.cluster.slurm]", f'folder = "{folder}"\n[hosts.cluster.slurm]')
        )
        process = start(gptctl_home, "run", tiny(400), "--host", "cluster", "--yes")
        try:
            steps(gptctl_home, 85)  # its first checkpoint is of step 80
            with suppress(OSError), (folder / "others").open("wb", buffering=0) as others:
                while True:
                    others.write(bytes(1 << 12))
            code = process.wait(timeout=480)
        finally:
            end(process)
    row = status(gptctl)
    assert (code, row["outcome"]) == (5, "failed") and "No space left" in row["cause"], row
    run = newest_run(gptctl_home)
    assert (gptctl_home / "runs" / str(run) / "checkpoints" / "latest" / "MANIFEST.json").is_file()


def test_what_slurm_refuses_is_said_in_its_words_and_what_waits_says_why(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm, entry: Callable[..., None]
) -> None:
    entry('partition = "nowhere"\n')
    refused = gptctl("run", tiny(80), "--host", "cluster", "--yes")
    assert refused.returncode == 2, refused.stderr
    assert "invalid partition specified: nowhere" in refused.stderr and "spot" in refused.stderr
    entry('partition = "spot"\n')
    for node in slurm.nodes:
        slurm.command("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        begun = gptctl("run", tiny(80), "--host", "cluster", "--yes", "-d", "--again")
        assert begun.returncode == 0, begun.stderr
        assert status(gptctl)["job"]["phase"] == "waiting" and status(gptctl)["job"]["reason"]
        assert gptctl("stop", "--yes").returncode == 0
        assert status(gptctl)["outcome"] == "stopped" and not slurm.job_ids()
    finally:
        slurm.take_back(*slurm.nodes)


@pytest.mark.usefixtures("entry")
def test_the_arms_of_a_sweep_are_one_job(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], slurm: Slurm
) -> None:
    (gptctl_home.parent / "small.toml").write_text(
        f'name = "small"\nbaseline = "{tiny(40)}"\nseeds = 1\n[set]\n"train.learning_rate" = [1e-3, 2e-3]\n'
    )
    done = gptctl("sweep", "run", "small.toml", "--host", "cluster", "--yes")
    assert done.returncode == 0, done.stderr
    rows = json.loads(gptctl("status", "--json").stdout)["runs"]
    assert [row["outcome"] for row in rows] == ["finished"] * 3
    jobs = {row["job"]["jobs"][-1] for row in rows}
    assert len({job.partition("_")[0] for job in jobs}) == 1 and len(jobs) == 3
    assert all(row["job"]["gpu_hours"] > 0 for row in rows)


def test_no_daemon_of_a_slurm_outlives_a_test_that_is_killed(tmp_path: Path) -> None:
    """Killed, it runs no teardown: its daemons, and what they started, end all the same."""
    folder = Path(tempfile.mkdtemp(prefix="gptctl-slurm-", dir="/dev/shm"))
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    argv, env = [sys.executable, str(program), str(folder)], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None and process.stdout.readline() == "trains\n"
        mark = f"SLURM_CONF={folder}/slurm.conf"
        assert len(marked(mark)) > 6
        process.kill()
    wait_until(lambda: not marked(mark) and not folder.exists(), 60)

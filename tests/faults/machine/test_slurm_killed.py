"""gptctl is killed around commands of Slurm, and Slurm kills a job without a word: of each run one job trains, and
none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.faults.machine.slurm_place import Place
from tests.stories.conftest import end, newest_run
from tests.support.clock.waiting import until
from tests.support.files.recipes import write_small
from tests.support.machines.slurm import Slurm
from tests.support.machines.sshd import Sshd

pytestmark = pytest.mark.faults
COMMAND = """#!/bin/sh
echo >>"$HOME/asked-{name}"
while [ -e "$HOME/hold-{name}" ]; do sleep 0.05; done
/usr/bin/{name} "$@" >"$HOME/answer-$$"; code=$?
echo >>"$HOME/done-{name}"
while [ -e "$HOME/mute-{name}" ]; do sleep 0.05; done
cat "$HOME/answer-$$"; exit $code
"""
"""A command of Slurm on the login node that waits, before and after, for as long as a test likes."""
Row = Callable[[str], None]


@pytest.fixture
def place(machines: Callable[..., Sshd], gptctl: Gptctl, gptctl_home: Path, tmp_path: Path) -> Iterator[Place]:
    """A cluster whose jobs are killed two seconds after they were asked to end."""
    with (
        tempfile.TemporaryDirectory(prefix="gptctl-slurm-", dir="/dev/shm") as folder,
        Slurm(Path(folder), kill_wait_s=2) as slurm,
    ):
        login = machines("cluster", env=[f"SLURM_CONF={slurm.conf}"])
        (login.home / "bin").mkdir()
        for name in ("sbatch", "scancel", "scontrol"):
            (login.home / "bin" / name).write_text(COMMAND.format(name=name))
            (login.home / "bin" / name).chmod(0o755)
        (login.home / ".profile").write_text('PATH="$HOME/bin:$PATH"\n')
        write_small(tmp_path, steps=200_000, every=200, machine="1xCPU")
        yield Place(tmp_path, gptctl_home, login, slurm, gptctl)


def asked(place: Place, what: str, times: int = 1) -> None:
    """Waits until the command was called, or has done its work, so often."""
    file = place.login.home / what
    until(lambda: file.exists() and file.read_bytes().count(b"\n") >= times, interval_s=0.1)


def trains_once(place: Place, jobs: int) -> None:
    """Of so many jobs that Slurm ever had of the run one trains, and every other one has ended."""
    place.trains_on()
    states = "-X", "-n", "-P", "-o", "State"
    until(lambda: place.slurm.command("sacct", *states).split().count("RUNNING") == 1, interval_s=0.5)
    assert len(place.slurm.command("sacct", *states).split()) == jobs
    until(lambda: len(place.writers()) == 1, 60, 0.5)


def stops(place: Place, follower: subprocess.Popen[str] | None = None) -> None:
    """It is stopped, and Slurm has nothing of it any more."""
    done = place.gptctl("stop", "--yes")
    assert done.returncode == 0, done.stderr
    assert follower is None or follower.wait(timeout=240) == 0
    assert place.status()["outcome"] == "stopped" and not place.slurm.job_ids()


def test_gptctl_is_killed_before_sbatch_which_goes_through_all_the_same(place: Place, row: Row) -> None:
    """The worst of it: nobody sees the first job when the second is submitted, and both start at once."""
    row("S5 gptctl killed right before sbatch, which goes through later")
    hold = place.login.home / "hold-sbatch"
    hold.touch()
    first = place.start("run", "tiny.toml", "--host", "cluster", "--yes")
    asked(place, "asked-sbatch")
    end(first)
    second = place.start("resume", place.run().name)
    try:
        asked(place, "asked-sbatch", 2)
        hold.unlink()
        trains_once(place, jobs=2)
        stops(place, second)
    finally:
        end(second)


def test_gptctl_is_killed_after_sbatch_before_it_hears_the_number(place: Place, row: Row) -> None:
    row("S6 gptctl killed right after sbatch")
    mute = place.login.home / "mute-sbatch"
    mute.touch()
    first = place.start("run", "tiny.toml", "--host", "cluster", "--yes")
    asked(place, "done-sbatch")
    end(first)
    second = place.start("resume", place.run().name)
    try:
        trains_once(place, jobs=1)
        mute.unlink()
        stops(place, second)
    finally:
        end(second)


def test_gptctl_is_killed_after_scancel_before_it_hears_the_answer(place: Place, row: Row) -> None:
    row("S7 gptctl killed right after scancel of a job that waits")
    for node in place.slurm.nodes:
        place.slurm.command("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    begun = place.gptctl("run", "tiny.toml", "--host", "cluster", "--yes", "-d")
    assert begun.returncode == 0, begun.stderr
    mute = place.login.home / "mute-scancel"
    mute.touch()
    stopping = place.start("stop", "--yes")
    asked(place, "done-scancel")
    end(stopping)
    mute.unlink()
    stops(place)


def test_a_job_that_runs_out_of_time(place: Place, row: Row) -> None:
    """Its limit is cut by others, and it is killed before it can save."""
    row("S8 TIMEOUT without a record")
    process = place.start("run", "tiny.toml", "--host", "cluster", "--yes")
    try:
        until(lambda: newest_run(place.home) and place.steps() >= 200, interval_s=0.5)
        job = place.status()["job"]["jobs"][-1]
        hold = place.login.home / "hold-scontrol"
        hold.touch()  # the job asks why it is ended, and is killed before it hears the answer
        place.slurm.command("scontrol", "update", f"JobId={job}", "TimeLimit=1")
        until(lambda: place.slurm.state(job) == "TIMEOUT", interval_s=0.5)  # and no longer COMPLETING
        hold.unlink()
        until(lambda: place.starts() == 2, interval_s=0.5)
        place.trains_on()
        row_now = place.status()
        assert len(row_now["job"]["jobs"]) == 2 and len(place.writers()) == 1
        assert "is TIMEOUT and was not requeued: submitted again as" in place.log.read_text()
        stops(place, process)
    finally:
        end(process)


def test_one_element_of_a_sweep_fails(place: Place, row: Row) -> None:
    row("S9 an array job of which one element fails")
    write_small(place.folder, steps=400, every=100, machine="1xCPU")
    recipe = place.folder / "tiny.toml"
    recipe.write_text(recipe.read_text().replace("[train]\n", "[train]\nrestarts = 0\n"))
    (place.folder / "small.toml").write_text(
        'name = "small"\nbaseline = "tiny.toml"\nseeds = 1\n[set]\n"train.learning_rate" = [1e-3, 2e-3]\n'
    )
    process = place.start("sweep", "run", "small.toml", "--host", "cluster", "--yes")
    try:
        runs = place.login.home / ".gptctl" / "runs"
        ranks = until(lambda: [pid for pid in place.login.processes() if _trains(pid, runs)], interval_s=0.2)
        os.kill(ranks[0], signal.SIGKILL)
        process.wait(timeout=480)
    finally:
        end(process)
    rows = json.loads(place.gptctl("status", "--json").stdout)["runs"]
    assert sorted(each["outcome"] for each in rows) == ["failed", "finished", "finished"], rows
    jobs = [each["job"]["jobs"] for each in rows]
    assert all(len(each) == 1 for each in jobs) and len({each[0].partition("_")[0] for each in jobs}) == 1
    assert not place.slurm.job_ids()


def _trains(pid: int, runs: Path) -> bool:
    """Whether it is the training of a run, once that logs its steps."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    folder = next((word for word in words if word.startswith(f"{runs}/")), "")
    return "trainer" in words and "step" not in words and (Path(folder) / "metrics.jsonl").exists()

"""What a cluster does to a job, and what is asked of one that it refuses: on a real Slurm, several rows for each start
of it. Preempted with a grace and out of time are in tests/stories/runs/test_slurm.py."""

from __future__ import annotations

import json
import signal
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
Row = Callable[[str], None]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with (
        tempfile.TemporaryDirectory(prefix="gptctl-slurm-", dir="/dev/shm") as folder,
        Slurm(Path(folder), grace_s=0) as cluster,
    ):
        yield cluster


@pytest.fixture
def place(
    machines: Callable[..., Sshd], slurm: Slurm, gptctl: Gptctl, gptctl_home: Path, tmp_path: Path
) -> Iterator[Place]:
    place = Place(tmp_path, gptctl_home, machines("cluster", env=[f"SLURM_CONF={slurm.conf}"]), slurm, gptctl)
    yield place
    slurm.command("scancel", *slurm.job_ids(), check=False)
    until(lambda: not slurm.job_ids(), interval_s=0.2)


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ('partition = "nowhere"', "invalid partition specified: nowhere"),
        ('account = "nobody"', "Invalid account or account/partition combination"),
        ('qos = "golden"', "Invalid qos specification"),
    ],
)
def test_what_slurm_refuses(order: str, says: str, place: Place, row: Row) -> None:
    row(f"S1 slurm refuses {order}")
    place.describe(order + "\n")
    done = place.gptctl("check", "cluster")
    assert done.returncode == 4, (done.returncode, done.stdout, done.stderr)
    assert says in done.stdout + done.stderr and "known: " in done.stdout + done.stderr
    assert not place.slurm.job_ids()


def test_a_job_that_waits(place: Place, row: Row) -> None:
    """For a node that is away, held, followed by a second gptctl, and stopped."""
    row("S2 pending for ever, held, a second gptctl on the same run")
    write_small(place.folder, steps=200_000, every=200, machine="1xCPU")
    other = ("--nodes=2", "--exclusive", "--time=30", "--wrap=sleep 1800", "-o", "/dev/null")
    job = place.slurm.command("sbatch", "--parsable", *other).strip()
    place.slurm.until_state(job, "RUNNING")
    process = None
    try:
        begun = place.gptctl("run", "tiny.toml", "--host", "cluster", "--yes", "-d")
        assert begun.returncode == 0, begun.stderr
        assert "waits in the queue" in begun.stderr + begun.stdout
        until(lambda: "starts in" in place.gptctl("status").stdout, interval_s=0.5)
        for node in place.slurm.nodes:
            place.slurm.command("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        place.slurm.command("scancel", job)
        first = until(lambda: place.status()["job"], interval_s=0.5)
        assert first["phase"] == "waiting" and first["reason"], first
        place.slurm.command("scontrol", "uhold", first["jobs"][-1])
        until(lambda: "scontrol release" in place.status()["job"]["reason"], interval_s=0.5)
        process = place.start("resume", place.run().name)
        until(lambda: "follow" in place.log.read_text() or "PENDING" in place.log.read_text(), interval_s=0.5)
        second = place.gptctl("resume", place.run().name)
        assert second.returncode == 2 and str(process.pid) in second.stderr, second.stderr
        assert place.gptctl("stop", "--yes").returncode == 0
        assert process.wait(timeout=240) == 0
        assert place.status()["outcome"] == "stopped" and not place.slurm.job_ids()
    finally:
        if process is not None:
            end(process)
        place.slurm.take_back(*place.slurm.nodes)


def test_what_befalls_a_job_that_trains(place: Place, row: Row) -> None:
    """One run through all of it: never two writers, every start on the bill, and its checkpoint here at the end."""
    row("S3 slurmctld down, login node gone, requeued by others, preempted without a grace, its node lost")
    write_small(place.folder, steps=200_000, every=200, machine="1xCPU")
    slurm, process = place.slurm, place.start("run", "tiny.toml", "--host", "cluster", "--yes")
    try:
        until(lambda: newest_run(place.home) and place.steps() >= 10, interval_s=0.5)
        job = place.status()["job"]["jobs"][-1]
        slurm.end("slurmctld")
        place.trains_on()
        slurm.start("slurmctld", "-s")
        place.login.cut()
        assert place.status()["seen"] == "unknown"
        place.login.heal()
        place.trains_on()
        slurm.command("scontrol", "requeue", job)
        until(lambda: place.starts() == 2, interval_s=0.5)
        place.trains_on()
        slurm.command("sbatch", "-p", "urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1", "-o", "/dev/null")
        until(lambda: place.starts() == 3, interval_s=0.5)
        place.trains_on()
        node = slurm.command("squeue", "-h", "-j", job, "-o", "%N").strip()
        slurm.end(f"slurmd-{node}", signal.SIGKILL)  # its processes live on
        until(lambda: place.starts() == 4, interval_s=0.5)
        until(lambda: len(place.writers()) == 1, 60, 0.5)
        place.trains_on()
        assert len(place.writers()) == 1
        assert place.gptctl("stop", "--yes").returncode == 0
        assert process.wait(timeout=240) == 0
    finally:
        end(process)
    for name in slurm.nodes:
        if not (slurm.folder / "run" / f"slurmd-{name}.pid").exists():
            slurm.start("slurmd", "-N", name)
    until(lambda: slurm.idle() == len(slurm.nodes), interval_s=0.2)
    status = place.status()
    assert (status["state"], status["outcome"]) == ("ended", "stopped") and status["job"]["starts"] == 4
    assert (place.run() / "checkpoints" / "latest" / "MANIFEST.json").is_file()
    books = slurm.command("sacct", "-D", "-X", "-n", "-P", "-j", job, "-o", "ElapsedRaw").split()
    (cost,) = json.loads(place.gptctl("cost", "--json").stdout)["runs"]
    assert cost["cost_usd"] == pytest.approx(sum(map(int, books)) / 1000, abs=2e-3)


def test_without_books_the_job_itself_says_what_it_cost(
    machines: Callable[..., Sshd], gptctl: Gptctl, gptctl_home: Path, tmp_path: Path, row: Row
) -> None:
    row("S4 sacct off")
    with (
        tempfile.TemporaryDirectory(prefix="gptctl-slurm-", dir="/dev/shm") as folder,
        Slurm(Path(folder), accounting=False) as slurm,
    ):
        place = Place(tmp_path, gptctl_home, machines("cluster", env=[f"SLURM_CONF={slurm.conf}"]), slurm, gptctl)
        write_small(tmp_path, steps=20, every=10, machine="1xCPU")
        done = gptctl("run", "tiny.toml", "--host", "cluster", "--yes")
        assert done.returncode == 0, done.stderr
        assert "sacct is off" in done.stderr + done.stdout
        began, ended = (json.loads(line)["time"] for line in place.there("slurm.jsonl").read_text().splitlines())
        (cost,) = json.loads(gptctl("cost", "--json").stdout)["runs"]
        assert cost["cost_usd"] == pytest.approx((ended - began) / 1000, abs=1e-3)

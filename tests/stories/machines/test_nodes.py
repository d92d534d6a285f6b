"""One run on two machines that share nothing but a network: own disks, own sshd, names that do not resolve."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Gptctl, gptctl_command
from tests.stories.conftest import end, losses, newest_run, wait_until
from tests.stories.rented import SETTINGS, ended
from tests.stories.rented import gptctl as started
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.recipes import write_small
from tests.support.machines.namespaces import NamespaceHost
from tests.support.machines.private_network import Pair, two_hosts
from tests.support.machines.sshd import descendants

pytestmark = pytest.mark.nightly
EVERY = 10
RENTED_PAIR = """
[hosts.pair]
provider = "rehearsal"
machine = "1xH100-simulated"
nodes = 2
guard = "key-on-box"
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path / "cloud", warm=True) as found:
        yield found


@contextlib.contextmanager
def followed(home: Path, pair: Pair) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A long run over the pair, with a checkpoint every EVERY steps, and the gptctl that follows it."""
    write_small(home.parent, steps=100_000, every=EVERY, machine="2x1xCPU")
    command = gptctl_command("run", "tiny.toml", "--host", "pair", "--inventory", pair.inventory, "--yes")
    with (home.parent / "background.log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, text=True, cwd=home.parent)
    try:
        yield driver, wait_until(lambda: newest_run(home), 60)
    finally:
        end(driver)


def last_step(run_folder: Path) -> int:
    """Of the metrics here so far, whose last line may be on its way."""
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with two_hosts(tmp_path) as found:
        yield found


def test_two_nodes_train_as_one_machine_with_as_many_ranks(
    gptctl: Gptctl, gptctl_home: Path, tiny: Callable[..., str], pair: Pair, tmp_path: Path
) -> None:
    recipe, options = tiny(40), ("--inventory", pair.inventory, "--yes")
    both = gptctl("run", recipe, "--host", "pair", *options)
    assert both.returncode == 0, both.stderr + both.stdout
    assert "na and nb meet at 10.199." in both.stderr + both.stdout
    on_two = newest_run(gptctl_home)
    assert on_two is not None

    status = json.loads(gptctl("status", on_two, "--json").stdout)
    assert "2x1xCPU" in json.dumps(status)
    log = gptctl("logs", on_two, "--node", "1")
    assert log.returncode == 0, log.stderr
    fetched = gptctl("fetch", on_two, "--json", "--to", str(tmp_path / "here"))
    assert all(each["verified"] for each in json.loads(fetched.stdout)["checkpoints"])
    costs = json.loads(gptctl("cost", on_two, "--json").stdout)["runs"]
    assert costs[0]["cost_usd"] > 0
    measured = gptctl("eval", on_two, "--on-host", "--slice", "0+640", "--json")
    assert measured.returncode == 0, measured.stderr
    asked = json.loads(
        next((pair.hosts[1].home / ".gptctl" / "jobs" / on_two).glob("evaluate-*/exit.json")).read_text()
    )
    assert asked["outcome"] == "finished"
    there = pair.hosts[1].home / ".gptctl" / "runs" / on_two
    assert not (there / "checkpoints").exists()

    alone = gptctl("run", recipe, "--host", "alone", *options)
    assert alone.returncode == 0, alone.stderr
    on_one = newest_run(gptctl_home)
    assert on_one not in (None, on_two)
    runs = gptctl_home / "runs"
    # Bit by bit with as many threads in each rank (tests/trainer/training); here a node has all of its own.
    assert dict(losses(runs / on_two)) == pytest.approx(dict(losses(runs / str(on_one))), rel=1e-5)
    alone_too = gptctl("eval", on_two, "--slice", "0+640", "--json")
    found = [json.loads(each.stdout)["evaluations"][0]["loss"] for each in (measured, alone_too)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_node_that_is_cut_off_ends_the_run_with_its_name_and_the_checkpoints(
    gptctl: Gptctl, gptctl_home: Path, pair: Pair
) -> None:
    with followed(gptctl_home, pair) as (driver, run_id):
        there = pair.hosts[0].home / ".gptctl" / "runs" / run_id / "checkpoints"
        wait_until(lambda: list(there.glob("step-*")), 300)
        pair.network.cut(pair.hosts[1])
        assert driver.wait(300) == 5
    said = (gptctl_home.parent / "background.log").read_text()
    assert "node nb (10.199." in said
    assert "is lost: no word for 15 s" in said


def test_a_run_that_may_go_on_does_so_alone_from_its_newest_checkpoint(
    gptctl: Gptctl, gptctl_home: Path, pair: Pair
) -> None:
    inventory = Path(pair.inventory)
    inventory.write_text(inventory.read_text() + 'on_node_lost = "continue"\n')
    with followed(gptctl_home, pair) as (driver, run_id):
        here = gptctl_home / "runs" / run_id
        wait_until(lambda: list(here.glob("checkpoints/step-*/MANIFEST.json")), 300)
        pair.network.cut(pair.hosts[1])
        log = gptctl_home.parent / "background.log"
        wait_until(lambda: "lost nb (" in log.read_text(), 120)
        began = int(log.read_text().rpartition("going on from step ")[2].split()[0])
        wait_until(lambda: last_step(here) > began + 5, 300)
        assert gptctl("stop", run_id, "--yes").returncode == 0
        assert driver.wait(120) == 0
    said = log.read_text()
    assert "lost nb (node nb (10.199." in said and "with 1xCPU, 1 of at most 3 times" in said
    assert began >= EVERY and began % EVERY == 0
    steps = [step for step, _ in losses(here)]
    assert steps == sorted(set(steps))


def ranks_on(host: NamespaceHost) -> list[int]:
    """Process ids of the trainer's ranks there."""
    assert host.process_id is not None
    found = []
    for pid in descendants(host.process_id):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"trainer" in words and b"torch.distributed.run" not in words:
                found.append(pid)
    return found


def test_a_rank_that_is_killed_on_one_node_starts_again_on_both(gptctl: Gptctl, gptctl_home: Path, pair: Pair) -> None:
    with followed(gptctl_home, pair) as (driver, run_id):
        here, log = gptctl_home / "runs" / run_id, gptctl_home.parent / "background.log"
        there = pair.hosts[0].home / ".gptctl" / "runs" / run_id / "checkpoints"
        wait_until(lambda: list(there.glob("step-*/MANIFEST.json")), 300)
        (rank,) = wait_until(lambda: ranks_on(pair.hosts[1]), 60)
        os.kill(rank, signal.SIGKILL)
        wait_until(lambda: "it starts again from its newest checkpoint" in log.read_text(), 120)
        died = last_step(here)
        wait_until(lambda: last_step(here) > died + EVERY, 300)
        assert gptctl("stop", run_id, "--yes").returncode == 0
        assert driver.wait(120) == 0
    assert "node nb (10.199." in log.read_text()
    steps = [step for step, _ in losses(here)]
    assert steps == sorted(set(steps))


def test_a_rented_node_that_goes_is_replaced_under_the_same_ceiling(cloud: RehearsalCloud, tmp_path: Path) -> None:
    write_small(tmp_path, steps=100_000, every=EVERY, machine="2x1xH100-simulated")
    (tmp_path / "inventory.toml").write_text(f'{RENTED_PAIR}on_node_lost = "replace"\n')
    driver = started(tmp_path, cloud, "run", "tiny.toml", "--host", "pair", "--yes", "--max-cost", "20", lease_s=600)
    try:
        run = wait_until(lambda: newest_run(tmp_path / "home"), 60)
        here = tmp_path / "home" / "runs" / run
        wait_until(lambda: list(here.glob("checkpoints/step-*/MANIFEST.json")), 300)
        second = [row["id"] for row in cloud.books()["instances"] if not row["foreign"]][1]
        cloud.terminate(second)
        wait_until(lambda: len([row for row in cloud.books()["instances"] if not row["foreign"]]) == 3, 120)
        began = last_step(here)
        wait_until(lambda: last_step(here) not in (began, 0), 300)
        assert ended(tmp_path, cloud, "stop", run, "--yes", lease_s=600).returncode == 0
        _, said = driver.communicate(timeout=120)
    finally:
        end(driver)
    assert driver.returncode == 0, said[-4000:]
    assert "lost pair-1 (" in said and "looking for a replacement" in said
    assert cloud.books()["alive"] == []
    (cost,) = json.loads(ended(tmp_path, cloud, "cost", run, "--json").stdout)["runs"]
    assert cost["cost_usd"] >= cloud.books()["total_cents"] / 100 - 0.005


def test_two_rented_machines_are_bought_as_one_trained_over_and_destroyed_cent_by_cent(
    tiny: Callable[..., str], cloud: RehearsalCloud, tmp_path: Path
) -> None:
    recipe = tmp_path / "over-both.toml"
    recipe.write_text(f'extends = "{tiny(40)}"\nname = "over-both"\n{SETTINGS}')
    (tmp_path / "inventory.toml").write_text(RENTED_PAIR)
    cloud.inject("no-capacity@us-east-1")
    planned = ended(tmp_path, cloud, "plan", str(recipe), "--host", "pair")
    assert "2x1xH100-simulated" in planned.stdout and "$8.58" in planned.stdout, planned.stderr

    both = ended(tmp_path, cloud, "run", str(recipe), "--host", "pair", "--yes", lease_s=600)
    assert both.returncode == 0, both.stderr
    run = newest_run(tmp_path / "home")
    assert run is not None and "pair-0 and pair-1 meet at 127." in both.stderr
    sold = [row for row in cloud.books()["instances"] if not row["foreign"]]
    assert len(sold) == 2 and cloud.books()["alive"] == []
    assert all(f"destroyed {row['id']}" in both.stderr for row in sold)
    assert len({row["region"] for row in sold}) == 1
    log = ended(tmp_path, cloud, "logs", run, "--node", "1")
    assert (log.returncode, "node 1 was destroyed, and its log with it" in log.stderr) == (2, True), log.stderr
    assert max(dict(losses(tmp_path / "home" / "runs" / run))) == 40

    (cost,) = json.loads(ended(tmp_path, cloud, "cost", run, "--json").stdout)["runs"]
    low, high = cost["cost_usd"] - cost["less_usd"], cost["cost_usd"] + cost["more_usd"]
    theirs_usd = cloud.books()["total_cents"] / 100
    rounding_usd = 0.005 * len(sold)  # the books have whole cents of each machine
    assert low - rounding_usd <= theirs_usd <= high + rounding_usd
    assert cost["cost_usd"] >= theirs_usd - 0.005

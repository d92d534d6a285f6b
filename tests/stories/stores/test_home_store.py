"""A box at home calls the rented machine and keeps what that stores: with the laptop away nothing is lost, the machine
ends by itself, and another goes on from what lies at home. Two real sshds; the oracles are the cloud's books and the
box's disk."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from os.path import exists
from pathlib import Path

import pytest

from orchestrator.agent.system import memory_files
from tests.stories.conftest import losses, newest_run, wait_until
from tests.stories.rented import BOX, SETTINGS, cloud, ended, gptctl, resumed_and_fetched
from tests.support.clouds.rehearsal_cloud import RehearsalCloud
from tests.support.files.canary import below, holders
from tests.support.machines.sshd import Sshd, inventory_entry_of

__all__ = ["cloud"]
STEPS = 500


@pytest.fixture
def nas(tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path, name="nas") as nas:
        yield nas


def inventory(nas: Sshd, folder: Path) -> str:
    store = f'checkpoint_store = "ssh://nas{folder}"\n'
    return BOX + store + inventory_entry_of(nas, machine_type="1xCPU", extra="") + '[hosts.local]\nmachine = "1xCPU"\n'


@pytest.mark.nightly
def test_with_the_laptop_away_everything_goes_home_and_another_machine_goes_on_from_there(
    tmp_path: Path, cloud: RehearsalCloud, tiny: Callable[..., str], nas: Sshd
) -> None:
    recipe, kept, home = tmp_path / "homeward.toml", tmp_path / "kept", tmp_path / "home"
    recipe.write_text(f'extends = "{tiny(STEPS)}"\nname = "homeward"\n{SETTINGS}')
    (tmp_path / "inventory.toml").write_text(inventory(nas, kept))
    process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=20)
    wait_until(lambda: process.poll() is not None or list(home.glob("runs/*/metrics.jsonl")), 200)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    run = str(newest_run(home))
    assert list(home.glob("runs/*/metrics.jsonl")), err
    wait_until(lambda: not cloud.books()["alive"], 180)

    index = json.loads((kept / run / "CHECKPOINTS.json").read_text())
    assert index["ended"]["outcome"] == "finished"
    assert max(each["step"] for each in index["checkpoints"]) == STEPS
    assert not list(kept.rglob(".part-*"))
    wait_until(lambda: not nas.processes(), 30)
    resumed_and_fetched(tmp_path, cloud, run, STEPS)

    check_that_another_goes_on(tmp_path, cloud, recipe, f"ssh://nas{kept}/{run}")
    folders = list(nas.home.glob(".gptctl/jobs/*/*"))
    assert folders and not [
        one for one in folders for kind in memory_files.KINDS if exists(memory_files.path(kind, str(one)))
    ]
    private = "-----BEGIN OPENSSH PRIVATE KEY-----"
    assert not holders(private, below(kept, nas.home)), "the box's key lies on no disk"


def check_that_another_goes_on(tmp_path: Path, cloud: RehearsalCloud, recipe: Path, stored: str) -> None:
    more = ended(
        tmp_path, cloud, "run", str(recipe), "--host", "local", "--resume-from", stored, "--yes",
        "--set", f"train.tokens={(STEPS + 20) * 256}",
    )  # fmt: skip
    assert more.returncode == 0 and f"resuming from step {STEPS}: {stored}" in more.stderr, more.stderr
    assert losses(tmp_path / "home" / "runs" / str(newest_run(tmp_path / "home")))[-1][0] == STEPS + 20

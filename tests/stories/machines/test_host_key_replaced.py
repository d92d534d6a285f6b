"""A rented machine's injected host key is replaced at first contact; a CLI that dies on the way locks nobody out."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.core.machines import all_machine_types
from tests.stories.conftest import wait_until
from tests.stories.rented import BOX, gptctl, killed_when
from tests.support.clouds.rehearsal_cloud import RehearsalCloud

KEY = "etc/ssh/ssh_host_ed25519_key.pub"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path / "cloud", warm=True) as cloud:
        yield cloud


@pytest.fixture
def recipe(tiny: Callable[..., str], tmp_path: Path) -> Path:
    machine = next(each.name for each in all_machine_types() if each.name.endswith("-simulated"))
    path = tmp_path / "rekeyed.toml"
    path.write_text(f'extends = "{tiny(20)}"\nname = "rekeyed"\n[machines."{machine}"]\nmicro_batch = 4\n')
    (tmp_path / "inventory.toml").write_text(BOX)
    return path


def pins(tmp_path: Path) -> list[str]:
    """The base64 of every key pinned."""
    file = tmp_path / "home" / "known_hosts"
    return [line.split()[2] for line in file.read_text().splitlines()] if file.exists() else []


def installed(cloud: RehearsalCloud) -> str:
    """The base64 of the key that the machine's sshd has."""
    (instance_id,) = cloud.books()["alive"]
    return (cloud.machine_folder(instance_id) / KEY).read_text().split()[1]


def two_pinned(tmp_path: Path, cloud: RehearsalCloud) -> bool:
    return len(pins(tmp_path)) == 2


def new_one_installed(tmp_path: Path, cloud: RehearsalCloud) -> bool:
    return len(pins(tmp_path)) == 2 and installed(cloud) == pins(tmp_path)[1]


@pytest.mark.nightly
@pytest.mark.parametrize("moment", [two_pinned, pytest.param(new_one_installed, marks=pytest.mark.nightly)])
def test_killed_between_the_steps_it_is_resumed_with_one_new_key_pinned(
    tmp_path: Path, cloud: RehearsalCloud, recipe: Path, moment: Callable[[Path, RehearsalCloud], bool]
) -> None:
    process = gptctl(tmp_path, cloud, "run", str(recipe), "--host", "box", "--yes", lease_s=300)
    run = killed_when(process, tmp_path, lambda: moment(tmp_path, cloud))
    born, *_ = pins(tmp_path)

    resumed = gptctl(tmp_path, cloud, "resume", run, lease_s=300)
    wait_until(lambda: resumed.poll() is not None or rekeyed(tmp_path), 60)
    assert resumed.poll() is None, resumed.communicate()
    (now,) = pins(tmp_path)
    assert now == installed(cloud) != born
    out, err = resumed.communicate(timeout=480)
    assert resumed.returncode == 0, out + err
    assert "keeps the host key" not in err
    assert cloud.books()["alive"] == [] and len(cloud.books()["instances"]) == 1


def rekeyed(tmp_path: Path) -> bool:
    with sqlite3.connect(f"file:{tmp_path}/home/ledger.db?mode=ro", uri=True, timeout=10) as connection:
        return "rekeyed" in json.loads(connection.execute("SELECT data FROM rentals").fetchone()[0])

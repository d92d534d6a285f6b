"""A cluster as an ordinary user has it: an account without rights, nodes without a network, and the Python that trains
built on the login node or brought by the site's modules."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.agent.contract import torch_builds
from tests.conftest import Gptctl
from tests.support.files.wheels import write_wheel
from tests.support.machines.account import account, give, offline
from tests.support.machines.slurm import Slurm
from tests.support.machines.sshd import Sshd

pytestmark = pytest.mark.nightly
MODULES = """
module() { [ "$1" = load ] && shift && for each; do PATH="$HOME/site/$each/bin:$PATH"; done; export PATH; }
"""


@pytest.fixture
def cluster() -> Iterator[tuple[Slurm, Sshd]]:
    """A Slurm, and its login node for an account that may do nothing but log in and submit."""
    with (
        tempfile.TemporaryDirectory(prefix="gptctl-slurm-", dir="/dev/shm") as folder,
        tempfile.TemporaryDirectory(prefix="gptctl-user-") as users,
        Slurm(Path(folder)) as slurm,
        account(Path(users) / "cluster" / "home") as user,
        offline(user),
    ):
        Path(users).chmod(0o755)
        slurm.manage(f"add user {user} Account=lab")
        pip = ["PIP_NO_INDEX=1", f"PIP_FIND_LINKS={users}"]  # what its login node's pip reaches
        write_wheel(Path(users), "torch", torch_builds.CPU.version, {"torch_there.pth": packages()})
        with Sshd(Path(users), name="cluster", user=user, env=[f"SLURM_CONF={slurm.conf}", *pip]) as login:
            yield slurm, login


def packages() -> str:
    """The folder of the torch that these tests have; a small wheel leads there."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parents[1])


def site_module(home: Path, name: str) -> None:
    """What an administrator installs: a Python with torch, which `module load` puts on the PATH."""
    prefix = home / "site" / name
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(prefix)], check=True)
    (folder,) = prefix.glob("lib/python3*/site-packages")
    (folder / "torch_there.pth").write_text(packages())
    (home / ".bash_profile").write_text(MODULES)


def test_a_user_without_rights_trains_in_what_was_built_or_in_the_sites_modules(
    gptctl: Gptctl, tiny: Callable[..., str], tmp_path: Path, cluster: tuple[Slurm, Sshd]
) -> None:
    slurm, login = cluster
    inventory = tmp_path / "inventory.toml"
    entry = login.inventory_entry(machine="1xCPU").replace('provider = "ssh"', 'provider = "slurm"')
    inventory.write_text(entry)
    done = gptctl("run", tiny(40), "--host", "cluster", "--yes")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(gptctl("status", "--json").stdout)["runs"]
    job = row["job"]["jobs"][-1]
    assert slurm.command("sacct", "-X", "-n", "-P", "-j", job, "-o", "User,State").split() == [
        f"{login.user}|COMPLETED"
    ]
    (made,) = (login.home / ".gptctl" / "envs").glob("*.json")
    assert json.loads(made.read_text())["kind"] == "built" and made.owner() == login.user
    checked = gptctl("check", "cluster")
    assert checked.returncode == 0 and f"built on this login node: {made.with_suffix('')}" in checked.stdout

    site_module(login.home, "pytorch/2.13")
    give(login.home / "site", login.user)
    inventory.write_text(entry + '[hosts.cluster.slurm]\nmodules = ["pytorch/2.13"]\n')
    checked = gptctl("check", "cluster")
    assert checked.returncode == 0 and "python3 of modules pytorch/2.13, torch 2.13" in checked.stdout, checked.stdout
    done = gptctl("run", tiny(40), "--host", "cluster", "--yes", "--again")
    assert done.returncode == 0, done.stderr
    assert "torch 2.13.0+cpu in" in done.stderr and "/envs/modules-" in done.stderr

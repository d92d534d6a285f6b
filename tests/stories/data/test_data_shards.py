"""One preparation spread over machines: hosts by SSH, one of which is lost, and an array job of a real Slurm.

The oracle is the same preparation in one go on this computer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.support.machines.slurm import Slurm
from tests.support.machines.sshd import Sshd

pytestmark = pytest.mark.nightly
FILES = ("dataset.json", "train.safetensors", "validation.safetensors")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file to part between documents, and one that is not parted."""
    rows = [json.dumps({"text": f"document {number} " * (number % 31 + 1)}) for number in range(4000)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    return tmp_path / "text.jsonl"


def prepared(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_hosts_share_a_preparation_and_one_that_is_lost_leaves_its_shards_to_the_other(
    gptctl: Gptctl, tmp_path: Path, text: Path, machines: Callable[..., Sshd]
) -> None:
    boxes = [machines(name) for name in ("one", "two")]
    entries = [box.inventory_entry(machine="1xCPU", extra=f'python = "{sys.executable}"\n') for box in boxes]
    (tmp_path / "inventory.toml").write_text("".join(entries) + '[hosts.gone]\nprovider = "ssh"\nmachine = "1xCPU"\n'
                                             'address = "127.0.0.1:1"\n')  # fmt: skip
    arguments = ("data", "prepare", text.name, "--tokenizer", "bytes")
    assert gptctl(*arguments, "--to", "whole").returncode == 0
    done = gptctl(*arguments, "--to", "merged", "--hosts", "gone", "--shards", "2")
    assert done.returncode == 4 and "2 of 2 shards were not made: gone" in done.stderr
    done = gptctl(*arguments, "--to", "merged", "--hosts", "gone,one,two", "--shards", "4")
    assert done.returncode == 0, done.stderr
    assert "gone makes no more shards" in done.stderr
    assert sum(f": {name}, " in line for line in done.stderr.splitlines() for name in ("one", "two")) == 4
    assert prepared(tmp_path / "merged") == prepared(tmp_path / "whole")
    assert not (tmp_path / "merged" / "shards").exists()
    for box in boxes:
        assert not list((box.home / ".gptctl" / "prepare").glob("*"))


def test_the_shards_are_one_array_of_slurm(
    gptctl: Gptctl, tmp_path: Path, text: Path, machines: Callable[..., Sshd]
) -> None:
    with tempfile.TemporaryDirectory(prefix="gptctl-slurm-", dir="/dev/shm") as folder, Slurm(Path(folder)) as slurm:
        login = machines("cluster", env=[f"SLURM_CONF={slurm.conf}"])
        entry = login.inventory_entry(
            machine="1xCPU", extra=f'python = "{sys.executable}"\n[hosts.cluster.slurm]\ncpus = 1\n'
        )
        (tmp_path / "inventory.toml").write_text(entry.replace('provider = "ssh"', 'provider = "slurm"'))
        arguments = ("data", "prepare", text.name, "--tokenizer", "bytes")
        assert gptctl(*arguments, "--to", "whole").returncode == 0
        done = gptctl(*arguments, "--to", "merged", "--hosts", "cluster", "--shards", "3")
        assert done.returncode == 0, done.stderr
        assert "an array of 3 shards" in done.stderr
        states = slurm.command("sacct", "-X", "-n", "-P", "-o", "State").split()
    assert states == ["COMPLETED"] * 3
    assert prepared(tmp_path / "merged") == prepared(tmp_path / "whole")

"""GPUs as the agent sees, locks and hands them on. A small nvidia-smi plays the driver of machines without a GPU."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.agent.system import locks, processes
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


@pytest.fixture
def uuids() -> Iterator[list[str]]:
    """Two GPUs that no other test has; their lock files go away again."""
    made = [f"GPU-test-{secrets.token_hex(6)}" for _ in range(2)]
    yield made
    for uuid in made:
        Path(locks.FOLDER, f"gpu-{uuid}.lock").unlink(missing_ok=True)


@pytest.fixture
def driver(tmp_path: Path, uuids: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An nvidia-smi with these two GPUs on PATH; the function says which processes compute on them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    rows = [f"{index}, {uuid}, NVIDIA H100 80GB HBM3, 81559, [N/A], 570.86.15" for index, uuid in enumerate(uuids)]
    (folder / "gpus").write_text("\n".join(rows) + "\n")
    (folder / "apps").write_text("")
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ncase "$1" in --query-gpu*) cat {folder}/gpus;; *) cat {folder}/apps;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def compute(apps: str) -> None:
        (folder / "apps").write_text(apps)

    return compute


def test_facts_list_the_gpus_and_who_computes(box: Box, driver: Callable[[str], None], uuids: list[str]) -> None:
    driver(f"{uuids[1]}, {os.getpid()}, python3, 1234\n")
    facts = box.call("facts")
    assert facts["driver"] == "570.86.15"
    assert facts["gpus"][0] == {
        "index": 0, "uuid": uuids[0], "name": "NVIDIA H100 80GB HBM3", "memory_total_mib": 81559,
        "memory_used_mib": None, "mig": False, "processes": [],
    }  # fmt: skip
    assert facts["gpus"][1]["processes"] == [{"pid": os.getpid(), "name": "python3", "memory_mib": 1234}]


def test_a_machine_without_a_driver_has_no_gpus(box: Box, driver: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    facts = box.call("facts")
    assert (facts["gpus"], facts["driver"]) == ([], None)


def test_a_training_locks_its_gpus_and_sees_no_others(
    box: Box, driver: Callable[[str], None], uuids: list[str]
) -> None:
    assert box.start(steps=100_000, spec_gpus=uuids[:1])["state"] == "started"
    until(lambda: len(box.ranks()) == 2)
    assert {processes.environment(rank)["CUDA_VISIBLE_DEVICES"] for rank in box.ranks()} == {uuids[0]}
    refused = box.start(run="r-2", spec_gpus=uuids)["error"]
    assert refused["code"] == "gpus-taken" and f"GPU {uuids[0]} is taken by run r-1" in refused["message"]
    # Other GPUs of the machine, and its CPU, are free for others.
    assert box.start(run="r-3", steps=100_000, spec_gpus=uuids[1:])["state"] == "started"
    assert box.start(run="r-4", steps=100_000)["state"] == "started"
    assert {processes.environment(rank)["CUDA_VISIBLE_DEVICES"] for rank in box.ranks("r-4")} <= {""}
    held = {lock["run"] for lock in box.call("facts")["locks"] if lock["run"].startswith("r-")}
    assert held == {"r-1", "r-3", "r-4"}


def test_gpus_on_which_others_compute_are_refused_by_name(
    box: Box, driver: Callable[[str], None], uuids: list[str]
) -> None:
    driver(f"{uuids[1]}, {os.getpid()}, /usr/bin/blender, 900\n")
    refused = box.start(spec_gpus=uuids)["error"]
    assert refused["code"] == "gpus-busy"
    assert f"/usr/bin/blender (pid {os.getpid()}, user {processes.user_name()}) on {uuids[1]}" in refused["message"]
    assert box.start(spec_gpus=uuids[:1], steps=100_000)["state"] == "started"
    driver("")
    assert box.start(run="r-2", spec_gpus=uuids[1:], steps=3)["state"] == "started"
    assert box.wait("r-2")["outcome"] == "finished"

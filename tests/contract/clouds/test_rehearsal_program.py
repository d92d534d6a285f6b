"""The rehearsal cloud as a program: one per state folder, restartable, says why it cannot run, imported by nobody."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.rehearsal.faults import KINDS
from orchestrator.rehearsal.machines.processes import identity
from tests.support.clock.waiting import until
from tests.support.clouds.rehearsal_cloud import RehearsalCloud, rehearsal, words_of_processes
from tests.support.files.repository import REPOSITORY

ORCHESTRATOR = REPOSITORY / "orchestrator"
LAUNCH = "instance-operations/launch"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RehearsalCloud]:
    with RehearsalCloud(tmp_path / "cloud") as running:
        yield running


def test_a_second_start_finds_the_first_and_arms_its_faults(cloud: RehearsalCloud) -> None:
    assert cloud.program("--daemon", "--inject", "quota") == cloud.entry
    assert cloud.ask("POST", LAUNCH, cloud.order())[1]["error"]["code"] == "global/quota-exceeded"


def test_a_cloud_in_the_foreground_refuses_a_folder_that_is_taken(cloud: RehearsalCloud) -> None:
    done = rehearsal("--state", str(cloud.state))
    assert done.returncode == 1 and "already" in done.stderr and cloud.entry["url"] in done.stderr


def test_a_killed_server_finishes_what_it_began(cloud: RehearsalCloud) -> None:
    cloud.inject("slow-boot@2,500@list")
    box = cloud.launch()
    os.kill(cloud.entry["pid"], signal.SIGKILL)
    old = cloud.entry
    until(lambda: identity(old["pid"]) is None)  # a process is seen for a moment after its SIGKILL
    assert cloud.start()["pid"] != old["pid"] and cloud.entry["url"] == old["url"]
    assert cloud.ask("GET", "instances")[0] == 500
    cloud.wait_for(box, "active")
    assert cloud.ssh(box, "echo up").stdout == "up\n"
    assert len(cloud.books()["instances"]) == 1


def test_stop_names_what_is_alive_and_destroy_ends_it(cloud: RehearsalCloud) -> None:
    box = cloud.up()
    assert cloud.program("--stop") == {"alive": [box]}
    assert cloud.program("--stop", "--destroy") == {"alive": []}
    assert cloud.program("--books") == cloud.books()
    assert not cloud.machine_folder(box).exists()


def test_nothing_outlives_a_deleted_state_folder(tmp_path: Path) -> None:
    cloud = RehearsalCloud(tmp_path / "cloud").__enter__()
    cloud.up()
    shutil.rmtree(cloud.state)
    until(lambda: words_of_processes(str(cloud.state.resolve())) == [])
    assert identity(cloud.entry["pid"]) is None


def test_every_request_is_logged_with_how_it_ended(cloud: RehearsalCloud) -> None:
    cloud.inject("timeout-after-effect")
    cloud.ask("POST", LAUNCH, cloud.order())
    cloud.ask("POST", LAUNCH, cloud.order())
    assert [one["status"] for one in cloud.requests("/launch")] == [0, 200]


def test_a_port_that_is_taken_everywhere_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = rehearsal("--state", str(tmp_path), "--daemon", "--ssh-port", str(port))
    assert done.returncode == 1 and f"port {port}" in done.stderr and "--ssh-port" in done.stderr


def test_an_unknown_fault_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = rehearsal("--state", str(tmp_path / "none"), "--daemon", "--inject", "500,no-capacty")
    assert done.returncode == 2 and "no-capacty" in done.stderr and "no-capacity" in done.stderr
    assert not (tmp_path / "none").exists()


def test_the_faults_are_listed() -> None:
    listed = [line.split()[0].partition("@")[0] for line in rehearsal("--faults").stdout.splitlines()]
    assert listed == list(KINDS)


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_nobody_imports_it_and_it_imports_the_standard_library_alone() -> None:
    inside = set((ORCHESTRATOR / "rehearsal").rglob("*.py"))
    importers = [file.name for file in set(ORCHESTRATOR.rglob("*.py")) - inside
                 if any(name.startswith("orchestrator.rehearsal.") for name in imported(file))]  # fmt: skip
    assert len(inside) > 10 and importers == []
    foreign = {name for file in inside for name in imported(file) if not name.startswith("orchestrator.rehearsal.")}
    assert {name for name in foreign if name.split(".")[0] not in sys.stdlib_module_names} == set()

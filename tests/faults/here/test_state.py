"""This side: the ledger, its locks and its folder; a disk without room here or there; a price that changed."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.faults.conftest import Rehearsal
from tests.stories.conftest import end, wait_until
from tests.support.files.repository import REPOSITORY
from tests.support.machines.sshd import Sshd

pytestmark = pytest.mark.faults


@contextmanager
def little_room(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own over this folder. Needs root."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_no_room_for_checkpoints_here(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F8 disk full here while checkpoints come home")
    with little_room(place.home / "runs", "200k"):
        full = place.run()
        assert full.returncode in (2, 4, 7), full.stderr
        assert "its disk has" in full.stderr, full.stderr
        assert "Traceback" not in full.stderr
        assert place.machine(), "given back although its checkpoints are not here"
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 0, resumed.stderr
    place.check()


def test_no_room_for_checkpoints_there(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F7 disk full on the machine")
    process = place.begin()
    place.until("stage_finished:sync")
    process.send_signal(19)
    runs = place.cloud.home(place.machine()) / ".gptctl" / "runs"
    with little_room(runs, "400k"):
        process.send_signal(18)
        code = process.wait(480)
        words = place.words()
        assert "\nTraceback" not in words, words
    assert code in (0, 4, 5, 7), words
    if code in (4, 7):
        released = place.gptctl("release", place.run_id(), "--force", "--yes")
        assert released.returncode in (0, 4, 5), released.stderr
    place.check(outcome=None)


def test_the_state_folder_is_deleted(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("state folder deleted in mid-run, taken in by its tags")
    process = place.begin("--detach")
    assert process.wait(240) == 0, place.words()
    machine = place.machine()
    shutil.rmtree(place.home)
    seen = place.gptctl("orphans", "--json")
    assert machine in seen.stdout
    adopted = place.gptctl("orphans", "--adopt")
    assert adopted.returncode == 0, adopted.stderr
    released = place.gptctl("release", place.run_id(), "--force", "--yes")
    assert released.returncode == 0, released.stderr
    place.check(outcome="stopped")


def test_the_state_folder_is_deleted_under_a_living_driver(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("state folder deleted under a driver, ended by its id", steps=1000)
    process = place.begin()
    wait_until(lambda: place.trained(20), 60)
    machine = place.machine()
    end(process)
    shutil.rmtree(place.home)
    reaped = place.gptctl("orphans", "--reap", machine, "--yes")
    assert reaped.returncode == 0 and f"destroyed {machine}" in reaped.stdout, reaped.stderr
    place.check(outcome=None, priced=False)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and then nothing"])
def test_a_damaged_ledger_launches_nothing(rehearse: Callable[..., Rehearsal], content: bytes) -> None:
    place = rehearse(f"F34 ledger cut to {len(content)} bytes")
    place.home.mkdir(mode=0o700)
    (place.home / "ledger.db").write_bytes(content)
    for leftover in place.home.glob("ledger.db-*"):
        leftover.unlink()
    run = place.run()
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr and "ledger" in run.stderr
    assert (place.home / "ledger.db").read_bytes() == content
    assert place.cloud.books()["instances"] == []
    (place.home / "ledger.db").unlink()
    place.check(outcome=None)


def test_two_drivers(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F24 two gptctl on one run", steps=600)
    process = place.begin()
    wait_until(lambda: place.trained(5), 60)
    second = place.gptctl("resume", place.run_id())
    assert second.returncode == 2 and str(process.pid) in second.stderr
    assert process.wait(480) == 0, place.words()
    place.check()


def test_a_driver_dies_and_its_lock_with_it(rehearse: Callable[..., Rehearsal]) -> None:
    place = rehearse("F26 lock of a dead process")
    place.killed_at("stage_started:follow")
    resumed = place.gptctl("resume", place.run_id())
    assert resumed.returncode == 0, resumed.stderr
    place.check()


def test_two_runs_on_one_machine_of_ones_own(rehearse: Callable[..., Rehearsal], box: Sshd) -> None:
    place = rehearse("F25 two runs on one SSH host: the second waits", steps=1000)
    inventory = place.folder / "inventory.toml"
    inventory.write_text(inventory.read_text() + "\n" + box.inventory_entry(extra=f'python = "{sys.executable}"\n'))
    command = ("run", "tiny.toml", "--host", "box", "--yes", "--set", "machines.2xCPU.micro_batch=4")
    first = place.start(*command)
    wait_until(lambda: place.trained(5), 60)
    holder = place.run_id()
    second = place.gptctl(*command, "--again")
    assert second.returncode == 0, second.stderr
    assert f"box trains {holder}" in second.stderr and "waits there for its turn" in second.stderr, second.stderr
    assert first.wait(240) == 0
    place.check()


TRAINER = {
    "F10 loss that is no number": "training/test_loop.py::test_gradients_that_stay_non_finite_fail_the_run_with_advice",
    "F12 a rank that hangs": "training/test_ranks.py::test_a_frozen_rank_ends_the_run_after_the_timeout",
    "F14 killed at every disk call of a save":
        "checkpoints/test_checkpoint.py::test_killed_before_every_single_disk_call_a_whole_checkpoint_is_found",
    "F9 out of memory twice": "training/test_ranks.py::test_out_of_memory_a_second_time_fails_with_a_suggestion",
    "F11 the trainer raises": "training/test_ranks.py::test_a_killed_rank_ends_the_run_with_the_cause",
}  # fmt: skip


@pytest.mark.parametrize("fault", TRAINER)
def test_faults_of_the_trainer_alone(fault: str, tmp_path: Path, row: Callable[[str], None]) -> None:
    """A training needs no cloud to go wrong: its own tests are the rows."""
    row(fault)
    place = REPOSITORY / "tests/trainer"
    argv = [sys.executable, "-m", "pytest", "-q", "--basetemp", str(tmp_path / "t"), f"{place}/{TRAINER[fault]}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=1200, cwd=REPOSITORY)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("command", ["resume", "stop"])
def test_killed_between_the_start_and_its_note(rehearse: Callable[..., Rehearsal], command: str) -> None:
    """The machine trains, and nothing here says so: its checkpoints come home all the same."""
    place = rehearse(f"F3 killed between the start and its note, then {command}", steps=200)
    process = place.begin()
    wait_until(lambda: place.trained(25), 120)
    end(process)
    with closing(sqlite3.connect(place.home / "ledger.db")) as ledger, ledger:
        ledger.execute("DELETE FROM attempts")
        ledger.execute("UPDATE runs SET state = 'preparing'")
    done = place.gptctl(command, place.run_id(), *(["--yes"] if command == "stop" else []))
    assert done.returncode == 0, place.said
    assert (place.home / "runs" / place.run_id() / "checkpoints" / "latest").is_dir(), place.said
    place.check(outcome="stopped" if command == "stop" else "finished")

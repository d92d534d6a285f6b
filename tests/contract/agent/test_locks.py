"""GPU locks: all or none, freed by the kernel, and nobody's link is followed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.agent.system import locks
from orchestrator.agent.system.refusal import Refusal

HOLDER = {"run": "r-1", "user": "me", "pid": 12}
HOLD = """
import sys, time
from orchestrator.agent.system import locks
locks.take_gpus(sys.argv[2:], {"run": "other-run", "user": "her", "pid": 77}, sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def hold(folder: Path, *uuids: str) -> subprocess.Popen[bytes]:
    """Another process that holds these GPUs until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *uuids], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_all_or_none_and_the_holder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    other = hold(folder, "GPU-b")
    with pytest.raises(Refusal) as refused:
        locks.take_gpus(["GPU-c", "GPU-b", "GPU-a"], HOLDER, str(folder))
    assert refused.value.code == "gpus-taken"
    assert refused.value.message == "GPU GPU-b is taken by run other-run of user her (pid 77)"
    free = locks.take_gpus(["GPU-a", "GPU-c"], HOLDER, str(folder))
    assert [lock["lock"] for lock in locks.held(sorted(map(str, folder.iterdir())))] == [
        "gpu-GPU-a.lock",
        "gpu-GPU-b.lock",
        "gpu-GPU-c.lock",
    ]
    locks.let_go(free)
    other.kill()
    other.communicate()
    # kill -9 leaves the file and what it says; the kernel has freed the lock.
    locks.let_go(locks.take_gpus(["GPU-b"], HOLDER, str(folder)))
    assert locks.read(str(folder / "gpu-GPU-b.lock")) == HOLDER
    assert locks.held([str(folder / "gpu-GPU-b.lock")]) == []


def test_the_folder_is_shared_and_its_locks_are_writable_by_all(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    held = locks.take_gpus(["GPU-a"], HOLDER, str(folder))
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o1777
    assert stat.S_IMODE(os.stat(folder / "gpu-GPU-a.lock").st_mode) == 0o666
    locks.let_go(held)


def test_a_link_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    folder, victim = tmp_path / "locks", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    (folder / "gpu-GPU-a.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        locks.take_gpus(["GPU-a"], HOLDER, str(folder))
    assert victim.read_text() == "precious"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match="is not a folder"):
        locks.take_gpus(["GPU-a"], HOLDER, str(tmp_path / "linked"))


@pytest.mark.parametrize("uuid", ["../x", "a b", "", "x" * 65])
def test_a_uuid_becomes_a_file_name_only_when_it_is_one(tmp_path: Path, uuid: str) -> None:
    with pytest.raises(Refusal, match="is not a GPU uuid"):
        locks.take_gpus([uuid], HOLDER, str(tmp_path))


def test_what_a_stranger_wrote_is_shown_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "gpu-GPU-a.lock"
    path.write_text('{"run": "\\u001b[31mr", "user": ["x"]}')
    assert "\x1b" not in locks.taken("gpus-taken", "GPU", locks.read(str(path))).message
    path.write_text("{ torn")
    assert locks.taken("gpus-taken", "GPU", locks.read(str(path))).message == "GPU is taken by run ? of user ? (pid ?)"

"""One driver per run: real processes compete for the lock of one run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.core.errors import RunLocked, UserError
from orchestrator.ledger import RunLock, holder

RUN = "quickstart-1120-k3f9qa"

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.ledger import RunLock
with RunLock.acquire(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""

COMPETE = """
import sys, time
from pathlib import Path
from orchestrator.core.errors import RunLocked
from orchestrator.ledger import RunLock
home = Path(sys.argv[1])
for number in range(30):
    try:
        with RunLock.acquire(home, sys.argv[2]):
            inside = home / "inside"
            inside.touch(exist_ok=False)  # raises if another process is inside, too
            time.sleep(0.001)
            inside.unlink()
            print("won")
    except RunLocked as error:
        assert "pid" in error.message or "another gptctl" in error.message
"""


def hold(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(home), RUN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=120)


def record(home: Path, **changes: object) -> Path:
    """A lock file as another process would have left it."""
    path = home / "locks" / f"{RUN}.lock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"pid": 4242, "host": "elsewhere", "machine_id": "other", "at": 5.0} | changes))
    return path


def test_a_second_driver_is_refused_with_pid_and_host_of_the_first(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(RunLocked, match=f"pid {process.pid} on {socket.gethostname()}") as refused:
            RunLock.acquire(tmp_path, RUN)
        assert refused.value.exit_code == 2 and RUN in refused.value.hint
        found = holder(tmp_path, RUN)
        assert found is not None and found.pid == process.pid
    finally:
        kill(process)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    process = hold(tmp_path)
    kill(process)
    assert holder(tmp_path, RUN) is None
    with RunLock.acquire(tmp_path, RUN):
        found = holder(tmp_path, RUN)
        assert found is not None and found.pid == os.getpid()


def test_a_released_lock_is_free_and_release_twice_is_fine(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path, RUN)
    lock.release()
    lock.release()
    assert holder(tmp_path, RUN) is None
    with RunLock.acquire(tmp_path, RUN):
        assert holder(tmp_path, "another-run") is None


def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with RunLock.acquire(tmp_path, RUN):
        child = subprocess.Popen(["sleep", "30"])
    try:
        with RunLock.acquire(tmp_path, RUN):
            assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_never_two_inside(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", COMPETE, str(tmp_path), RUN]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    wins = 0
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        wins += out.count("won")
    assert wins >= 30


def test_on_a_shared_home_another_machines_record_is_respected(tmp_path: Path) -> None:
    path = record(tmp_path)
    with pytest.raises(RunLocked, match="pid 4242 on elsewhere") as refused:
        RunLock.acquire(tmp_path, RUN)
    assert f"rm '{path}'" in refused.value.hint
    found = holder(tmp_path, RUN)
    assert found is not None and found.host == "elsewhere"
    path.unlink()
    RunLock.acquire(tmp_path, RUN).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\xff\xfe", "null"])
def test_a_torn_record_of_a_dead_process_blocks_nobody(tmp_path: Path, text: str) -> None:
    record(tmp_path).write_bytes(text.encode("latin-1"))
    with RunLock.acquire(tmp_path, RUN):
        found = holder(tmp_path, RUN)
        assert found is not None and found.pid == os.getpid()


def test_own_record_under_a_new_host_name_is_taken_over(tmp_path: Path) -> None:
    with RunLock.acquire(tmp_path, RUN):
        mine = holder(tmp_path, RUN)
    assert mine is not None
    (tmp_path / "locks").rename(tmp_path / "old")
    record(tmp_path, machine_id=mine.machine_id)
    with RunLock.acquire(tmp_path, RUN):
        assert holder(tmp_path, RUN) is not None


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "a b", "A", "x" * 41, "a\n"])
def test_a_name_that_is_no_run_id_touches_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not a run id"):
        RunLock.acquire(tmp_path / "home", name)
    assert list(tmp_path.iterdir()) == []


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("data")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / f"{RUN}.lock").symlink_to(target)
    with pytest.raises(UserError, match="cannot be opened"):
        RunLock.acquire(tmp_path, RUN)
    assert target.read_text() == "data"


def test_the_record_says_when(tmp_path: Path) -> None:
    with RunLock.acquire(tmp_path, RUN, lambda: 77.0):
        found = holder(tmp_path, RUN)
    assert found is not None and found.at == 77.0 and found.at < time.time()

"""A follower that vanished without a word is noticed, and the lease is no longer renewed in its name."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    box.start(steps=100_000, step_s=0.5)
    box.until_steps(1)
    yield box
    box.end()


def follower(box: Box, silence_s: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(box.argv("follow"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    request = {"run": "r-1", "job": "train", "offsets": {}, "silence_s": silence_s}
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    return process


def kinds(process: subprocess.Popen[bytes]) -> set[str]:
    assert process.stdout is not None
    return {json.loads(line)["kind"] for line in process.stdout}


def test_it_goes_on_while_it_is_heard_and_stops_when_it_is_not(box: Box) -> None:
    process = follower(box, 8)
    assert process.stdin is not None
    for _ in range(15):
        time.sleep(0.6)
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert process.poll() is None
    until(lambda: process.poll() is not None)
    assert process.returncode == 0
    assert kinds(process) == {"data", "heartbeat"}
    assert box.job()["state"] == "running"
    process.stdin.close()


def test_a_closed_stdin_ends_it_at_once(box: Box) -> None:
    process = follower(box, 600)
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None
    assert process.wait(timeout=120) == 0
    assert "ended" not in kinds(process)


def test_a_follower_that_promised_no_sign_of_life_needs_none(box: Box) -> None:
    process = box.background("follow", run="r-1", job="train")
    time.sleep(2)
    assert process.poll() is None
    process.kill()
    process.communicate()

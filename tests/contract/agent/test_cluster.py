"""One training on two agents: one verdict, and a node that falls silent ends the other's."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[list[Box]]:
    """Two machines of one loopback, each with an address of its own."""
    pair = [Box(tmp_path / name) for name in ("a", "b")]
    yield pair
    for box in pair:
        box.end()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1]) - 1


def start(boxes: list[Box], restarts: int = 0, **fails: Any) -> None:
    """`fails` are options of node b alone."""
    port = free_port()
    for node, box in enumerate(boxes):
        cluster = {"id": "r-1.1", "node": node, "addresses": ["127.0.0.1", "127.0.0.2"], "names": ["a", "b"]}
        config = {"steps": 100_000, **(fails if node else {})}
        said = box.start(spec_cluster={**cluster, "port": port}, spec_ranks=1, spec_restarts=restarts, **config)
        assert said["state"] == "started"


def test_a_node_that_is_killed_ends_the_other_and_is_named(boxes: list[Box]) -> None:
    start(boxes)
    boxes[0].until_steps(5)
    log = boxes[1].root / "runs" / "r-1" / "train.log"
    until(lambda: log.exists() and "rank 0 of r-1" in log.read_text())
    os.kill(boxes[1].state()["supervisor"]["pid"], signal.SIGKILL)
    ended = boxes[0].wait()
    assert ended["outcome"] == "failed"
    assert ended["reason"].startswith("node b (127.0.0.2) is lost: no word for 15 s")
    assert ended["lost"] == [1]
    again = boxes[0].start(steps=5, digest="d2", spec_attempt=2)  # alone
    assert again["state"] == "started"
    assert boxes[0].wait()["outcome"] == "finished"
    assert (boxes[0].folder() / "exit-1.json").exists()
    assert (boxes[0].job()["attempt"], boxes[0].starts()) == (2, 1)
    assert boxes[0].start(steps=5, digest="d2", spec_attempt=2)["state"] == "ended"


@pytest.mark.parametrize("where", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_ranks_that_die_on_one_node_start_again_on_all_within_the_bound(boxes: list[Box], where: int) -> None:
    start(boxes, restarts=1)
    for number in (1, 2):
        until(lambda: all(box.starts() == number and len(box.ranks()) == 1 for box in boxes))  # noqa: B023
        seen = [len(box.metrics()) for box in boxes]
        until(lambda: all(len(box.metrics()) > had + 3 for box, had in zip(boxes, seen, strict=True)))  # noqa: B023
        (rank,) = boxes[where].ranks()
        os.kill(rank, signal.SIGKILL)
    ended = [box.wait() for box in boxes]
    assert [each["outcome"] for each in ended] == ["failed", "failed"]
    name = f"node {'ab'[where]} (127.0.0.{where + 1}) failed: "
    assert all(each["reason"].startswith(name) for each in ended)
    first, second = ended[0]["deaths"]
    assert first["pause_s"] == 2.0 and first["reason"].startswith(name)
    assert second["reason"].endswith("it died 2 times, and restarts is 1")
    assert [box.starts() for box in boxes] == [2, 2]


def test_what_failed_on_a_node_is_the_cause_on_the_head(boxes: list[Box]) -> None:
    start(boxes, fail_at=3)
    ended = boxes[0].wait()
    assert ended["outcome"] == "failed"
    assert ended["reason"].startswith("node b (127.0.0.2) failed: ")
    assert boxes[1].wait()["outcome"] == "failed"

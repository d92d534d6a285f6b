"""A machine that is told by its metadata that it is taken away: the training saves and ends as `preempted`, in time."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.job import spot_notice
from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box

LONG_AGO = b'{"action": "stop", "time": "2020-01-01T00:00:00Z"}'


class Metadata(http.server.ThreadingHTTPServer):
    """Version 2: no answer without a token. `documents`: what it has, by the last word of the path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.documents: dict[str, bytes] = {}
        self.tokens = ["first"]
        self.asked: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        self._answer(200 if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") else 400, self.server.tokens[-1])

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != self.server.tokens[-1]:
            return self._answer(401, "")
        found = self.server.documents.get(self.path.rpartition("/")[2])
        return self._answer(404 if found is None else 200, (found or b"").decode())

    def _answer(self, status: int, text: str) -> None:
        self.server.asked.append((self.command, self.path))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    metadata = Metadata()
    yield metadata
    metadata.shutdown()
    metadata.server_close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def in_s(seconds: float, action: str = "terminate") -> bytes:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    return json.dumps({"action": action, "time": moment}).encode()


def begin(box: Box, metadata: Metadata) -> None:
    box.start(steps=5000, spec_notice={"url": metadata.url})
    box.until_steps(2)
    box.until_ranks_listen()


def test_a_notice_ends_the_training_as_preempted_with_its_own_last_word(box: Box, metadata: Metadata) -> None:
    begin(box, metadata)
    metadata.documents["instance-action"] = in_s(120)
    exit_record = box.wait()
    assert exit_record["outcome"] == "preempted" and "terminate" in exit_record["reason"]
    assert exit_record["trainer"]["outcome"] == "stopped"
    told = box.call("status", run="r-1")["runs"]["r-1"]["notice"]["taken"]
    assert told["action"] == "terminate" and 100 < told["left_s"] <= 121


def test_a_supervisor_that_is_killed_leaves_the_notice_to_the_next(box: Box, metadata: Metadata) -> None:
    begin(box, metadata)
    box.kill_supervisor()
    metadata.documents["instance-action"] = in_s(120)
    box.call("follow", run="r-1", job="train", offsets={})
    assert box.wait()["outcome"] == "preempted"


def test_a_recommendation_is_only_a_warning(box: Box, metadata: Metadata) -> None:
    begin(box, metadata)
    metadata.documents["rebalance"] = b'{"noticeTime": "2026-11-26T22:00:00Z"}'
    until(lambda: (box.call("status", run="r-1")["runs"]["r-1"]["notice"] or {}).get("warning") is not None)
    found = box.call("status", run="r-1")["runs"]["r-1"]
    assert "rebalance" in found["notice"]["warning"] and found["notice"]["taken"] is None
    assert box.job()["state"] == "running"


def test_a_token_that_expired_is_replaced(metadata: Metadata) -> None:
    watch = spot_notice.Watch(metadata.url, every_s=0.05)
    until(lambda: len(metadata.asked) > 4)
    metadata.tokens.append("second")
    metadata.documents["instance-action"] = in_s(60)
    until(lambda: watch.taken() is not None)
    assert [method for method, _ in metadata.asked].count("PUT") == 2 and watch.warning() is None


def test_a_metadata_service_that_does_not_answer_is_worth_a_warning_and_no_verdict(metadata: Metadata) -> None:
    metadata.shutdown()
    metadata.server_close()
    watch = spot_notice.Watch(metadata.url, every_s=0.02)
    until(lambda: watch.warning() is not None)
    assert "does not answer" in (watch.warning() or "") and watch.taken() is None


@pytest.mark.parametrize(
    ("document", "left_s"),
    [(LONG_AGO, 120.0), (b"not json", 120.0), (b"[1]", 120.0), (b'{"action": 7, "time": null}', 120.0), (None, 90.0)],
)
def test_a_moment_that_cannot_be_meant_counts_as_two_minutes(document: bytes | None, left_s: float) -> None:
    found = spot_notice.read_notice(in_s(90) if document is None else document, time.time())
    assert abs(found["left_s"] - left_s) <= 1.5

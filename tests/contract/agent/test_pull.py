"""The pull job: from a real server that cuts, refuses and lies, to files that are whole or not there."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock.waiting import until
from tests.support.files.canary import below, holders
from tests.support.machines.agent_box import Box

CONTENT = random.Random(3).randbytes(3_000_000)
TOKEN = "canary-5d2c77"


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT by ranges. `cut_after`: ends answers after so many bytes; `refusals`: codes to answer first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut_after: int | None = None
        self.pause_s = 0.0
        self.refusals: list[int] = []
        self.ignores_ranges = False
        self.content = CONTENT
        self.redirect_to: str | None = None
        self.sent_bytes = 0
        self.tokens: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/train.bin?signature={TOKEN}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.tokens.append(self.headers.get("Authorization"))
        if server.refusals:
            self.send_error(server.refusals.pop(0))
            return
        if server.redirect_to:
            self.send_response(302)
            self.send_header("Location", server.redirect_to)
            self.end_headers()
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked
        first, last = (0, len(server.content) - 1) if server.ignores_ranges else map(int, asked.groups())
        self.send_response(200 if server.ignores_ranges else 206)
        body = server.content[first : last + 1]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(server.content)}")
        self.end_headers()
        body = body[: server.cut_after]
        for start in range(0, len(body), 65536):
            self.wfile.write(body[start : start + 65536])
            server.sent_bytes += len(body[start : start + 65536])
            time.sleep(server.pause_s)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def request(url: str, *cuts: int, digest: str = "d", sha256: str | None = None) -> dict[str, Any]:
    """A pull of CONTENT into data/x/train.bin, in parts that end at these offsets and at its end."""
    ends = [*cuts, len(CONTENT)]
    parts = [
        {
            "offset": first,
            "size_bytes": last - first,
            "destination": "data/x/train.bin",
            "sha256": sha256 or hashlib.sha256(CONTENT[first:last]).hexdigest(),
        }
        for first, last in zip([0, *cuts], ends, strict=True)
    ]
    secrets = {"parts": [{"url": url, "headers": {"Authorization": TOKEN}}] * len(parts)}
    return {"job": "pull", "run": "r-1", "digest": digest, "spec": {"parts": parts}, "secrets": secrets}


def pulled(box: Box, question: dict[str, Any]) -> dict[str, Any]:
    assert box.call("start", **question)["state"] == "started"
    return box.wait(job="pull")


def assert_whole(box: Box, ended: dict[str, Any]) -> None:
    file = box.root / "data" / "x" / "train.bin"
    assert ended["outcome"] == "finished", ended["last_lines"]
    assert file.read_bytes() == CONTENT
    (found,) = ended["result"]["files"].values()
    assert found == {"size_bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    assert [path.name for path in file.parent.iterdir()] == ["train.bin"]


@pytest.mark.parametrize("cuts", [(), (1_000_000,), (1, 2_999_999)])
def test_parts_become_one_verified_file(box: Box, server: Server, cuts: tuple[int, ...]) -> None:
    ended = pulled(box, request(server.url, *cuts))
    assert_whole(box, ended)
    assert server.sent_bytes == len(CONTENT)
    assert set(server.tokens) == {TOKEN}
    progress = [json.loads(line) for line in (box.folder(job="pull") / "progress.jsonl").read_text().splitlines()]
    assert {"step": "pull", "bytes_done": len(CONTENT), "bytes_total": len(CONTENT)} in progress


def test_an_answer_cut_every_few_kilobytes_is_resumed_at_the_byte(box: Box, server: Server) -> None:
    server.cut_after = 200_000
    assert_whole(box, pulled(box, request(server.url)))
    assert server.sent_bytes == len(CONTENT)


def test_busy_answers_are_waited_out_and_a_no_is_final(box: Box, server: Server) -> None:
    server.refusals = [503, 429, 500]
    assert_whole(box, pulled(box, request(server.url)))
    (box.root / "data" / "x" / "train.bin").unlink()
    server.refusals = [403] * 9
    ended = pulled(box, request(server.url, digest="e"))
    assert ended["outcome"] == "failed"
    assert ended["last_lines"] == ["source-denied: pull of train.bin: 127.0.0.1 answers 403 Forbidden"]
    assert len(server.refusals) == 8


def test_a_killed_pull_goes_on_where_it_was(box: Box, server: Server) -> None:
    server.pause_s = 0.05
    question = request(server.url)
    box.call("start", **question)
    notes = box.root / "data" / "x" / ".tmp-train.bin.json"
    until(lambda: notes.exists() and sum(json.loads(notes.read_text())["done"]) > 500_000)
    box.kill_everything(job="pull")
    until(lambda: box.job(job="pull")["state"] == "lost")
    arrived = sum(json.loads(notes.read_text())["done"])
    server.pause_s, server.sent_bytes = 0.0, 0
    assert_whole(box, pulled(box, question))
    assert server.sent_bytes == len(CONTENT) - arrived
    assert box.starts(job="pull") == 2


def test_a_lost_pull_without_its_secrets_says_what_it_needs(box: Box, server: Server) -> None:
    question = request(server.url)
    assert box.call("start", **{**question, "secrets": {}})["error"]["code"] == "needs-input"
    ended = pulled(box, {**question, "secrets": {"parts": []}})
    assert ended["outcome"] == "failed" and ended["last_lines"][0].startswith("needs-input: ")
    assert_whole(box, pulled(box, question))


def test_wrong_bytes_are_thrown_away(box: Box, server: Server) -> None:
    server.content = b"x" + CONTENT[1:]
    ended = pulled(box, request(server.url))
    assert ended["outcome"] == "failed" and ended["last_lines"][0].startswith("wrong-bytes: ")
    assert list((box.root / "data" / "x").iterdir()) == []
    server.content = CONTENT
    assert_whole(box, pulled(box, request(server.url)))


@pytest.mark.parametrize("flaw", ["ignores ranges", "short"])
def test_a_server_that_cannot_give_the_bytes_is_an_error(box: Box, server: Server, flaw: str) -> None:
    server.ignores_ranges = flaw == "ignores ranges"
    server.content = CONTENT[:1_500_000] if flaw == "short" else CONTENT
    ended = pulled(box, request(server.url, 1_000_000))
    assert ended["outcome"] == "failed"
    assert not (box.root / "data" / "x" / "train.bin").exists()
    assert "train.bin" in ended["last_lines"][0]


def test_the_token_does_not_follow_a_redirect(box: Box, server: Server) -> None:
    front = Server()
    thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    front.redirect_to = server.url
    assert_whole(box, pulled(box, request(front.url)))
    assert set(front.tokens) == {TOKEN} and set(server.tokens) == {None}
    front.shutdown()
    thread.join()
    front.server_close()


def test_no_secret_is_written_anywhere(box: Box, server: Server) -> None:
    pulled(box, request(server.url))
    server.refusals = [404] * 9
    (box.root / "data" / "x" / "train.bin").unlink()
    pulled(box, request(server.url, digest="e"))
    unreachable = pulled(box, request("http://127.0.0.1:9/x?" + TOKEN, digest="f"))
    assert unreachable["last_lines"][0].startswith("source-lost: pull of train.bin: 127.0.0.1: ")
    files = below(box.root)
    assert len(files) > 20
    assert holders(TOKEN, files) == []


def test_a_local_file_is_pulled_too_and_what_is_there_is_not_pulled_again(
    box: Box, server: Server, tmp_path: Path
) -> None:
    source = tmp_path / "a file.bin"
    source.write_bytes(CONTENT)
    assert_whole(box, pulled(box, request(source.as_uri(), 7)))
    assert_whole(box, pulled(box, request(server.url, digest="again")))
    assert server.sent_bytes == 0


@pytest.mark.parametrize("destination", ["../../x", "/etc/x", "", "data/../../x"])
def test_nothing_is_pulled_to_a_place_outside(box: Box, server: Server, destination: str) -> None:
    question = request(server.url)
    question["spec"]["parts"][0]["destination"] = destination
    ended = pulled(box, question)
    assert ended["outcome"] == "failed" and ended["last_lines"][0].startswith("bad-request: ")
    assert server.sent_bytes == 0


def test_a_disk_too_small_is_refused_before_the_first_byte(box: Box, server: Server) -> None:
    question = request(server.url)
    question["spec"]["parts"][0]["size_bytes"] = 1 << 60
    ended = pulled(box, question)
    assert ended["outcome"] == "failed" and ended["last_lines"][0].startswith("disk-full: 1152921504.61 GB are to come")
    assert server.sent_bytes == 0

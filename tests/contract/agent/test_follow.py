"""Following a job: every byte once, across broken readers, to the end."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock.waiting import until
from tests.support.machines.agent_box import Box, followed_bytes


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.end()


def test_follow_sends_every_byte_and_ends_with_the_exit(box: Box) -> None:
    box.start(steps=60)
    answers = box.lines("follow", run="r-1", job="train", offsets={})
    run = box.root / "runs" / "r-1"
    assert followed_bytes(answers, "metrics.jsonl") == (run / "metrics.jsonl").read_bytes()
    assert followed_bytes(answers, "train.log") == (run / "train.log").read_bytes()
    assert answers[-1]["kind"] == "ended" and answers[-1]["exit"]["outcome"] == "finished"
    assert [answer["kind"] for answer in answers].count("ended") == 1
    beat = next(answer for answer in answers if answer["kind"] == "heartbeat")
    assert "train" in beat["status"]["jobs"] and beat["time_s"] > 1e9


def test_a_reader_that_is_cut_ten_times_gets_every_byte_once(box: Box) -> None:
    box.start(steps=120)
    chance = random.Random(7)
    mirror = {"metrics.jsonl": b"", "train.log": b"", "events.jsonl": b""}
    for _ in range(10):
        reader = box.background("follow", run="r-1", job="train", offsets={k: len(v) for k, v in mirror.items()})
        assert reader.stdout is not None
        received = reader.stdout.read(chance.randrange(2000, 4000))
        reader.kill()
        reader.communicate()
        take(mirror, received)
    answers = box.lines("follow", run="r-1", job="train", offsets={k: len(v) for k, v in mirror.items()})
    take(mirror, b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
    for name in ("metrics.jsonl", "train.log"):
        assert mirror[name] == (box.root / "runs" / "r-1" / name).read_bytes()
    assert mirror["metrics.jsonl"].count(b"\n") == 120


def take(mirror: dict[str, bytes], received: bytes) -> None:
    """What a reader does with the complete lines it got before the cut."""
    answers: list[dict[str, Any]] = [json.loads(line) for line in received.split(b"\n")[:-1] if line]
    for name, content in mirror.items():
        offsets = [answer["offset"] for answer in answers if answer.get("file") == name]
        assert not offsets or offsets[0] == len(content)
        mirror[name] = content + followed_bytes(answers, name)


def test_follow_of_an_ended_job_sends_the_rest(box: Box) -> None:
    box.start(steps=5)
    box.wait()
    content = (box.root / "runs" / "r-1" / "metrics.jsonl").read_bytes()
    answers = box.lines("follow", run="r-1", job="train", offsets={"metrics.jsonl": 10})
    assert followed_bytes(answers, "metrics.jsonl") == content[10:]


def test_a_reader_with_more_than_there_is_is_told(box: Box) -> None:
    box.start(steps=5)
    box.wait()
    assert box.call("follow", run="r-1", job="train", offsets={"metrics.jsonl": 10**6})["error"]["code"] == "bad-offset"
    for offsets in ({"/etc/passwd": 0}, {"metrics.jsonl": -1}, {"metrics.jsonl": "0"}):
        assert box.call("follow", run="r-1", job="train", offsets=offsets)["error"]["code"] == "bad-request"
    assert box.call("follow", run="r-1", job="pull", offsets={})["error"]["code"] == "no-such-job"
    assert box.call("follow", run="r-2", job="train", offsets={})["error"]["code"] == "no-such-run"


def test_a_follower_gives_a_killed_supervisors_job_a_new_one(box: Box) -> None:
    box.start(steps=600)
    box.until_steps(3)
    box.kill_supervisor()
    answers = box.lines("follow", run="r-1", job="train", offsets={})
    assert answers[-1]["exit"]["outcome"] == "finished"
    assert followed_bytes(answers, "metrics.jsonl").count(b"\n") == 600
    assert box.starts() == 1


def test_a_lost_training_ends_for_its_follower(box: Box) -> None:
    box.start(steps=100_000)
    box.until_steps(3)
    box.kill_everything()
    answers = box.lines("follow", run="r-1", job="train", offsets={})
    assert answers[-1]["exit"]["outcome"] == "failed"


def test_a_lost_program_needs_its_input_again(box: Box) -> None:
    request = box.program_request("import time; time.sleep(600)")
    box.call("start", **request)
    box.kill_everything(job="prepare")
    until(lambda: not box.processes(job="prepare"))
    assert box.call("follow", run="r-1", job="prepare", offsets={})["error"]["code"] == "needs-input"
    assert box.call("start", **request)["state"] == "started"


def test_a_follower_ends_when_nobody_reads_any_more(box: Box) -> None:
    box.start(steps=100_000)
    reader = subprocess.Popen(box.argv("follow"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reader.stdin and reader.stdout and reader.stderr
    reader.stdin.write(b'{"run": "r-1", "job": "train"}')
    reader.stdin.close()
    reader.stdout.readline()
    reader.stdout.close()
    assert reader.wait(timeout=120) == 1
    assert reader.stderr.read() == b""
    reader.stderr.close()
    assert box.job()["state"] == "running"


def test_a_program_jobs_progress_is_followed_by_its_digest(box: Box) -> None:
    for digest in ("one", "two"):
        box.call("start", **box.program_request(f'print(\'{{"digest": "{digest}"}}\')', digest=digest))
        until(lambda: all(e["state"] == "ended" for e in box.call("status", run="r-1")["runs"]["r-1"]["jobs"].values()))
    for digest in ("one", "two"):
        answers = box.lines("follow", run="r-1", job="prepare", digest=digest, offsets={})
        assert json.loads(followed_bytes(answers, "progress.jsonl")) == {"digest": digest}
        assert answers[-1]["exit"]["result"] == {"digest": digest}
    assert box.lines("follow", run="r-1", job="prepare", offsets={})[-1]["exit"]["result"] == {"digest": "two"}

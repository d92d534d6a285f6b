"""A log without end on a machine: bounded on its disk, followed at its offsets, and no hindrance to metrics."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent import follow
from orchestrator.agent.system import long_logs

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"MOST_BYTES": 6 * MIB, "FIRST_BYTES": MIB, "LAST_BYTES": 2 * MIB}.items():
        monkeypatch.setattr(long_logs, name, size)


def a_log(path: Path, size_mib: int) -> Path:
    path.write_bytes(b"".join(bytes([65 + number % 26]) * MIB for number in range(size_mib)))
    return path


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_the_middle_of_a_long_log_is_given_back_and_every_offset_stays(tmp_path: Path) -> None:
    log = a_log(tmp_path / "train.log", 20)
    before = log.read_bytes()
    with log.open("ab") as writer:
        long_logs.bound(str(log))
        writer.write(b"more\n")
    assert log.stat().st_size == 20 * MIB + 5 and on_disk(log) <= 6 * MIB
    after = log.read_bytes()
    assert (after[:MIB], after[-2 * MIB - 5 :]) == (before[:MIB], before[-2 * MIB :] + b"more\n")


def test_a_log_of_a_usual_length_is_left_alone(tmp_path: Path) -> None:
    log = a_log(tmp_path / "train.log", 3)
    long_logs.bound(str(log))
    long_logs.bound(str(tmp_path / "none"))
    assert on_disk(log) == 3 * MIB and long_logs.without_hole(str(log), "x") == str(log)


def test_what_is_stored_of_a_long_log_has_its_beginning_and_end(tmp_path: Path) -> None:
    log = a_log(tmp_path / "train.log", 20)
    copy = Path(long_logs.without_hole(str(log), str(tmp_path / "copy")))
    assert copy.read_bytes() == b"A" * MIB + b"\n[...]\n" + log.read_bytes()[-2 * MIB :]


class Job:
    def __init__(self, files: dict[str, str]) -> None:
        self.followed_files = lambda: files


def test_each_file_gets_its_share_of_a_round_and_a_hole_is_passed_over(tmp_path: Path) -> None:
    log, metrics = a_log(tmp_path / "train.log", 20), tmp_path / "metrics.jsonl"
    long_logs.bound(str(log))
    metrics.write_bytes(b'{"step": 1}\n')
    job: Any = Job({"metrics.jsonl": str(metrics), "train.log": str(log)})
    offsets = {"metrics.jsonl": 0, "train.log": 0}
    came: dict[str, int] = {"metrics.jsonl": 0, "train.log": 0}
    rounds = 0
    while follow._is_behind(job, offsets):
        sent = list(follow._fresh(job, offsets))
        sizes = [len(base64.b64decode(each["data"])) for each in sent if each["file"] == "train.log"]
        assert sum(sizes) <= follow.SHARE_BYTES
        for each in sent:
            came[each["file"]] += len(base64.b64decode(each["data"]))
        rounds += 1
        metrics.write_bytes(metrics.read_bytes() + b'{"step": 2}\n')
        if rounds == 3:
            log.open("ab").write(b"more\n")
        if rounds > 3:
            offsets["metrics.jsonl"] = metrics.stat().st_size
    assert came["train.log"] <= 4 * MIB and came["metrics.jsonl"] >= 3 * 12
    assert offsets["train.log"] == log.stat().st_size

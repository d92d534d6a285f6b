"""What stays here of a training's files: no byte lost or doubled, a log bounded, a kill at any moment harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.core.errors import RemoteError
from orchestrator.stages.checkpoints import mirrored_files
from orchestrator.stages.checkpoints.mirrored_files import append, parts, position, replace, start

FLOOD_PIECES = 60


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrored_files, "LOG_PART_BYTES", 1000)
    monkeypatch.setattr(mirrored_files, "MOST_BYTES", 1000)


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %05d\n" % number for number in range(first, last))


def test_bytes_come_once_and_a_gap_is_an_error(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    append(metrics, 0, b"abc")
    append(metrics, 1, b"bcd")
    assert (metrics.read_bytes(), position(metrics)) == (b"abcd", 4)
    with pytest.raises(RemoteError, match="jumped from byte 4 to 9"):
        append(metrics, 9, b"x")


def test_a_flood_of_log_keeps_its_beginning_and_its_end_in_whole_lines(tmp_path: Path) -> None:
    log, sent = tmp_path / "train.log", 0
    for piece in range(FLOOD_PIECES):
        data = lines(20 * piece, 20 * piece + 20)
        append(log, position(log), data)
        sent += len(data)
        assert position(log) == sent
    kept = [each.read_bytes() for each in (*parts(log), log)]
    assert len(parts(log)) == 2 and sum(map(len, kept)) < 4000
    assert kept[0].startswith(lines(0, 3)) and (kept[1] + kept[2]).endswith(
        lines(20 * FLOOD_PIECES - 3, 20 * FLOOD_PIECES)
    )
    assert all(each.endswith(b"\n") for each in kept if each)


def test_a_log_goes_on_behind_what_the_machine_dropped(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    append(log, 0, b"first\n")
    append(log, 5000, b"later\n")
    assert ([each.read_bytes() for each in parts(log)], log.read_bytes()) == ([b"first\n"], b"later\n")
    assert (start(log), position(log)) == (5000, 5006)
    append(log, 5000, b"later\nmore\n")
    assert log.read_bytes() == b"later\nmore\n"


def test_a_kill_between_putting_aside_and_writing_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    append(log, 0, b"first\n")
    log.rename(tmp_path / "train.log.until-6")
    assert position(log) == 6
    append(log, 6, b"second\n")
    assert (log.read_bytes(), position(log)) == (b"second\n", 13)


def test_metrics_without_end_are_written_up_to_a_limit(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert append(metrics, 0, b"x" * 900) and not append(metrics, 900, b"x" * 200)
    assert metrics.stat().st_size == 900


def test_a_whole_log_from_the_store_takes_the_place_of_all_parts(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    append(log, 0, b"first\n")
    append(log, 50, b"later\n")
    (tmp_path / "whole").write_bytes(b"all of it\n")
    replace(log, tmp_path / "whole")
    assert (parts(log), log.read_bytes(), position(log)) == ([], b"all of it\n", 10)

"""What stays here of a training's files: no byte lost or doubled, a log bounded, a kill at any moment harmless."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import RemoteError
from orchestrator.remote.agent_client.client import Data
from orchestrator.stages.checkpoints import mirrored_files
from orchestrator.stages.checkpoints.mirror import Starts
from orchestrator.stages.checkpoints.mirrored_files import append, parts, position, replace, shorten, start
from orchestrator.stages.context import RunContext
from trainer import run_files

FLOOD_PIECES = 60


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirrored_files, "LOG_PART_BYTES", 1000)
        patch.setattr(mirrored_files, "MOST_BYTES", 10_000)
        yield


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
    assert append(metrics, 0, b"x" * 9000) and not append(metrics, 9000, b"x" * 2000)
    assert metrics.stat().st_size == 9000


def test_a_whole_log_from_the_store_takes_the_place_of_all_parts(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    append(log, 0, b"first\n")
    append(log, 50, b"later\n")
    (tmp_path / "whole").write_bytes(b"all of it\n")
    replace(log, tmp_path / "whole")
    assert (parts(log), log.read_bytes(), position(log)) == ([], b"all of it\n", 10)


class Machine:
    """Its metrics and events, as a trainer writes them that is started again from checkpoints."""

    def __init__(self) -> None:
        self.files = {run_files.METRICS: b"", run_files.EVENTS: b""}
        self.starts, self.step = 0, 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            line = json.dumps({"step": self.step, "loss": "x" * (self.starts * 7 % 11)})
            self.files[run_files.METRICS] += line.encode() + b"\n"

    def start_again(self, step: int) -> None:
        self.starts, self.step = self.starts + 1, min(step, self.step)
        lines = self.files[run_files.METRICS].splitlines(keepends=True)
        self.files[run_files.METRICS] = b"".join(lines[: self.step])
        resumed = [run_files.EVENT_RESUMED] if self.step else []  # without a checkpoint it starts from nothing
        for name in (*resumed, run_files.EVENT_STARTED):
            self.files[run_files.EVENTS] += json.dumps({"event": name, "step": self.step}).encode() + b"\n"


def look(machine: Machine, here: Path, most_bytes: int) -> None:
    """One connection that ends after so many bytes of each file, as a lost link ends it."""
    starts = Starts(cast("RunContext", SimpleNamespace(mirror=here)))
    shorten(here / run_files.METRICS, len(machine.files[run_files.METRICS]))  # what BAD_OFFSET leads to
    for name, content in machine.files.items():
        offset = position(here / name)
        data = Data(name, offset, content[offset : offset + most_bytes])
        repeats = starts.drop_repeated(data)
        append(here / name, data.offset, data.data)
        if repeats:
            return


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(1, 9)),
        st.tuples(st.just("start_again"), st.integers(0, 30)),
        st.tuples(st.just("look"), st.integers(1, 200)),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(moves=MOVES)
def test_metrics_of_a_training_that_starts_again_are_those_of_the_machine(moves: list[tuple[str, int]]) -> None:
    machine = Machine()
    with TemporaryDirectory() as folder:
        here = Path(folder)
        for name, number in moves:
            look(machine, here, number) if name == "look" else getattr(machine, name)(number)
        for _ in range(2 + 2 * machine.starts):
            look(machine, here, 1 << 20)
        for name, content in machine.files.items():
            assert ((here / name).read_bytes() if (here / name).exists() else b"") == content

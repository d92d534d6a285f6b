"""What is shown of a training's log: every line, and of a flood its beginning and how much more there was."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from orchestrator.stages.checkpoints import mirror
from orchestrator.stages.checkpoints.mirror import (
    LOG_CHARACTERS,
    LOG_LINES_S,
    MOST_LOG_LINES,
    SHOWN_CHARACTERS,
    Progress,
)
from orchestrator.stages.context import RunContext
from trainer.run_files import EVENT_PREPARING, EVENTS, LOG


@dataclass
class Watched:
    """As much of a run's context as its log needs."""

    run_id: str = "tiny-1130-abcdef"
    at: float = 1000.0
    shown: list[str] = field(default_factory=list)

    def now(self) -> float:
        return self.at

    def emit(self, kind: str, text: str = "", **data: Any) -> None:
        assert kind in ("log", "doing")
        self.shown.append(text)


@pytest.fixture
def run() -> Watched:
    return Watched()


@pytest.fixture
def progress(run: Watched, monkeypatch: pytest.MonkeyPatch) -> Progress:
    monkeypatch.setattr(mirror.Progress, "heartbeat", lambda self, status: None)
    return Progress(cast("RunContext", run))


def numbered(first: int, count: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, first + count))


def test_every_line_of_a_usual_log_is_shown(run: Watched, progress: Progress) -> None:
    for second in range(30):
        progress.data(LOG, numbered(10 * second, 10))
        run.at += 1.0
    progress.ended()
    assert run.shown == [f"line {number}" for number in range(300)]


@pytest.mark.parametrize("pieces", [1, 7, 600])
def test_a_flood_is_counted_and_not_shown(run: Watched, progress: Progress, pieces: int) -> None:
    for piece in range(pieces):
        progress.data(LOG, numbered(0, 600_000 // pieces if piece else 600_000 - (pieces - 1) * (600_000 // pieces)))
    progress.ended()
    assert len(run.shown) == MOST_LOG_LINES + 1
    assert run.shown[-1] == f"... {600_000 - MOST_LOG_LINES} lines more: gptctl logs {run.run_id}"


def test_after_a_flood_lines_are_shown_again(run: Watched, progress: Progress) -> None:
    progress.data(LOG, numbered(0, MOST_LOG_LINES + 3))
    run.at += LOG_LINES_S + 1
    progress.data(LOG, b"after the flood\n")
    progress.ended()
    assert run.shown[MOST_LOG_LINES:] == ["... 3 lines more: gptctl logs tiny-1130-abcdef", "after the flood"]


def test_a_line_without_end_is_cut(run: Watched, progress: Progress) -> None:
    progress.data(LOG, b"x" * 100_000 + b"\n")
    assert run.shown == ["x" * LOG_CHARACTERS]


def test_what_the_trainer_does_before_its_first_step_is_told_as_it_comes(run: Watched, progress: Progress) -> None:
    said: list[object] = ["building the model", "compiling the model", "x" * 9000, None, {"a": 1}]
    for doing in said:
        line = json.dumps({"event": EVENT_PREPARING, "step": 0, "doing": doing}).encode()
        progress.data(EVENTS, line[:20])
        progress.data(EVENTS, line[20:] + b"\n")
    assert run.shown[:2] == said[:2]
    assert len(run.shown) == len(said) and max(map(len, run.shown)) == SHOWN_CHARACTERS

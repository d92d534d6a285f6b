"""What `gptctl queue` shows of a machine's queue, and what a run that waits says it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.runs import queue
from orchestrator.core.facts.run_facts import QueueFacts
from orchestrator.stages.machine import queue_turn
from tests.support.machines.lying_account import LyingAccount, rented


@pytest.mark.parametrize(
    ("waiting", "words"),
    [(0, "box: nothing waits"), (1, "box: 1 run waits"), (2, "box: 2 runs wait")],
)
def test_what_waits_is_counted_in_words(waiting: int, words: str) -> None:
    assert queue.summary("box", waiting).startswith(words)


@pytest.mark.parametrize(
    ("facts", "doing"),
    [
        (None, ""),
        (QueueFacts(ahead=0), "queued: it starts when the training there ends"),
        (QueueFacts(ahead=2), "queued: 3 trainings come first"),
        (QueueFacts(ahead=None, has_started=True), ""),
    ],
)
def test_a_run_that_waits_says_what_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: QueueFacts | None, doing: str
) -> None:
    with rented(tmp_path, LyingAccount(), monkeypatch) as context:
        context.set_run_facts(queue=facts)
        assert queue_turn.place(context) == doing

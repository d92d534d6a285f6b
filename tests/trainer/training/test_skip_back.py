"""A streak of gradients that are not finite, with train.skip_back: the next start goes back to a checkpoint before it,
and trains on none of the batches that led there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.files.training_runs import events, new_run, train_here
from trainer.checkpoints import skip_back
from trainer.run_files import METRICS
from trainer.training import loop
from trainer.training.loop import TrainingError
from trainer.training.metrics import read_lines

OPTIONS: dict[str, Any] = {
    "steps": 80, "checkpoint_every": 20, "validate_every": 20, "log_every": 5, "max_nonfinite_steps": 5,
}  # fmt: skip


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[range], list[int]]:
    """Makes the gradients of these steps NaN; returns the steps that are trained from then on."""

    def poison(bad: range) -> list[int]:
        trained: list[int] = []
        seed, update = loop.seed_step, loop.update

        def seeded(number: int, step: int, rank: int) -> None:
            trained.append(step)
            seed(number, step, rank)

        def updated(engine: loop.Engine, counts: loop.StepCounts) -> torch.Tensor:
            if trained[-1] in bad:
                for weights in engine.model.parameters():
                    if weights.grad is not None:
                        weights.grad.fill_(torch.nan)
            return update(engine, counts)

        monkeypatch.setattr(loop, "seed_step", seeded)
        monkeypatch.setattr(loop, "update", updated)
        return trained

    return poison


def test_it_goes_back_before_the_streak_and_skips_its_batches(
    tmp_path: Path, poisoned: Callable[[range], list[int]]
) -> None:
    folder = new_run(tmp_path / "run", skip_back=True, **OPTIONS)
    trained = poisoned(range(46, 55))
    with pytest.raises(TrainingError, match="up to step 55"):
        train_here(folder)
    trained.clear()
    train_here(folder)
    assert trained == list(range(55, 80)), "from the checkpoint of step 40, with none of the batches up to step 55"
    steps = [line["step"] for line in read_lines(folder / METRICS)]
    assert steps == [1, *range(5, 45, 5), *range(60, 85, 5)]
    said = [event["reason"] for event in events(folder, "warning")]
    assert "steps 41 to 55 are left out: they led to gradients that were not finite" in said
    assert [event["step"] for event in events(folder, "resumed")] == [40]


@pytest.mark.parametrize(("bad", "options"), [(range(10, 30), {"skip_back": True}), (range(46, 60), {})])
def test_without_an_older_checkpoint_or_without_skip_back_nothing_is_left_out(
    tmp_path: Path, poisoned: Callable[[range], list[int]], bad: range, options: dict[str, bool]
) -> None:
    folder = new_run(tmp_path / "run", **{**OPTIONS, **options})
    poisoned(bad)
    with pytest.raises(TrainingError):
        train_here(folder)
    assert skip_back.read(folder) == []


@given(
    checkpoints=st.sets(st.integers(0, 400)), at_step=st.integers(1, 400), streak=st.integers(1, 50),
    log_every=st.integers(1, 50),
)  # fmt: skip
def test_what_is_left_out_holds_the_streak_and_ends_where_it_was_seen(
    checkpoints: set[int], at_step: int, streak: int, log_every: int
) -> None:
    skip = skip_back.before_streak(checkpoints, at_step, streak, log_every)
    if skip is None:
        assert not any(0 < step <= at_step - streak - log_every for step in checkpoints)
        return
    first, last = skip
    assert first in checkpoints and last == at_step and last - first >= streak + log_every
    assert skip_back.past([skip], first) == last and not skip_back.left_out([skip], first)
    assert list(skip_back.trained([skip], 0, 450)) == [*range(first), *range(last, 450)]
    assert skip_back.left_out([skip], last) and not skip_back.left_out([skip], last + 1)


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["a", 1]]', "null"])
def test_a_file_that_cannot_be_read_leaves_nothing_out(tmp_path: Path, text: str) -> None:
    (tmp_path / skip_back.FILE).write_text(text)
    assert skip_back.read(tmp_path) == []

"""Batch and length schedules: every token once, the same steps and tokens everywhere, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.files.training_runs import events, losses, new_run, train_here
from trainer.arithmetic import flop_per_token, steps_for
from trainer.arithmetic.schedule import Course, check_stages, micro_batch_of, steps_for_stages
from trainer.config.config_tables import Stage
from trainer.contract import DataConfig, ModelConfig, RunConfig, TrainConfig
from trainer.run_files import CHECKPOINTS, METRICS
from trainer.tokens.batches import Share, course_of, open_data, prefetched
from trainer.training.compile_check import STEPS as CHECK_STEPS
from trainer.training.metrics import read_lines
from trainer.training.start import check_batches

LENGTH = 16


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Stage, ...]:
    ends = sorted(draw(st.lists(st.floats(0.01, 0.99), max_size=3, unique=True)))
    lengths = [draw(st.sampled_from([2, 4, 8, 16])) for _ in ends]
    return tuple(
        Stage(end, draw(st.integers(1, 4)) * LENGTH // length, length)
        for end, length in zip(ends, lengths, strict=True)
    )


@given(schedules(), st.integers(1, 60), st.integers(1, 9))
def test_the_parts_are_all_steps_and_their_tokens_add_up(
    stages: tuple[Stage, ...], steps: int, global_batch: int
) -> None:
    course = Course.of(stages, steps, global_batch, LENGTH)
    of_each = [course.at(step).tokens for step in range(steps)]
    for step in range(steps + 1):
        assert course.tokens(step) == sum(of_each[:step])
    assert course.parts[0].first == 0
    assert course.parts[-1].last == steps


@given(schedules(), st.integers(1, 20_000), st.integers(1, 9))
def test_the_steps_are_the_fewest_that_see_the_tokens(
    stages: tuple[Stage, ...], tokens: int, global_batch: int
) -> None:
    steps = steps_for_stages(tokens, stages, global_batch, LENGTH)
    assert Course.of(stages, steps, global_batch, LENGTH).tokens(steps) >= tokens
    if not stages:
        assert steps == steps_for(tokens, global_batch, LENGTH)
    assume(steps > 1)
    per_step = max(stage.global_batch * stage.context_length for stage in [*stages, Stage(1, global_batch, LENGTH)])
    assert Course.of(stages, steps - 1, global_batch, LENGTH).tokens(steps - 1) < tokens + len(stages) * per_step


@given(schedules(), st.integers(1, 40), st.integers(1, 5))
def test_flop_are_those_of_each_step(stages: tuple[Stage, ...], steps: int, global_batch: int) -> None:
    model = ModelConfig(vocab_size=300, context_length=LENGTH, n_layer=2, n_head=2, n_embd=32)
    course = Course.of(stages, steps, global_batch, LENGTH)
    expected = sum(
        part.tokens
        * flop_per_token(
            ModelConfig(vocab_size=300, context_length=part.context_length, n_layer=2, n_head=2, n_embd=32)
        )
        for part in map(course.at, range(1, steps))
    )
    assert course.flop(model, 1, steps) == expected


def config_of(path: Path, stages: tuple[Stage, ...], order: str, steps: int = 10) -> RunConfig:
    np.arange(LENGTH * 400 + 1, dtype="<u2").tofile(path)
    model = ModelConfig(vocab_size=65_536, context_length=LENGTH, n_layer=1, n_head=1, n_embd=8)
    data = DataConfig(train_files=(str(path),), order=order, dtype="uint16")
    return RunConfig(model=model, data=data, train=TrainConfig(steps=steps, global_batch=6, stages=stages))


STAGES = (Stage(0.2, 16, 4), Stage(0.5, 4, 16), Stage(0.8, 8, 8))


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
@pytest.mark.parametrize(("world", "size"), [(1, 6), (1, 2), (2, 1)])
def test_every_token_is_read_once_whatever_the_ranks(tmp_path: Path, order: str, world: int, size: int) -> None:
    config = config_of(tmp_path / "t.bin", STAGES, order)
    data, course = open_data(config), course_of(config)
    seen = []
    for rank in range(world):
        share = Share(size, 6 // world // size, rank, world)
        for ids, targets, _ in prefetched(data, range(10), share, torch.device("cpu")):
            assert torch.equal(targets, ids + 1)
            seen += ids.flatten().tolist()
    assert len(seen) == len(set(seen)) == course.tokens(10)
    if order == "sequential":
        assert sorted(seen) == list(range(course.tokens(10)))


@pytest.mark.parametrize(
    ("step", "shapes"), [(0, [(4, 4), (2, 8), (1, 16)]), (3, [(2, 8), (1, 16)]), (40, [(1, 16)])], ids=str
)
def test_the_compile_check_sees_every_shape_that_is_to_come(
    tmp_path: Path, step: int, shapes: list[tuple[int, int]]
) -> None:
    """Also where a part is shorter than the check."""
    stages = (Stage(0.05, 8, 4), Stage(0.5, 4, 8))
    data = open_data(config_of(tmp_path / "text.bin", stages, "shuffled", steps=40))
    batches = check_batches(data, Share(1, 2), step)
    assert len(batches) >= CHECK_STEPS
    assert list(dict.fromkeys(tuple(ids.shape) for ids, _ in batches)) == shapes
    assert all(torch.equal(ids[:, 1:], targets[:, :-1]) for ids, targets in batches)


def test_a_micro_batch_of_short_sequences_has_as_many_tokens() -> None:
    course = Course.of((Stage(0.5, 384, 256),), 10, 96, 1024)
    assert micro_batch_of(course.parts[0], 12, 8, 1024) == 48
    assert micro_batch_of(course.parts[1], 12, 8, 1024) == 12
    with pytest.raises(ValueError, match="a global batch of 384 does not divide over 7 ranks"):
        micro_batch_of(course.parts[0], 12, 7, 1024)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((Stage(0.0, 4, 16),), r"stages\[0\]: until must be above 0 and below 1, got 0"),
        ((Stage(0.5, 4, 16), Stage(0.4, 4, 16)), r"stages\[1\]: until must be above 0.5 and below 1, got 0.4"),
        ((Stage(0.5, 4, 5),), "context_length must divide the model's 16"),
        ((Stage(0.5, 3, 4),), "3 sequences of 4 tokens are not whole windows of 16: .* a multiple of 4"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: tuple[Stage, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stages(stages, LENGTH)


def test_a_staged_run_resumes_bit_for_bit_and_counts_its_tokens(tmp_path: Path) -> None:
    stages = (Stage(0.4, 8, 16), Stage(0.8, 4, 32))
    unbroken = new_run(tmp_path / "run", steps=30, micro_batch=4, stages=stages)
    train_here(unbroken)
    before = losses(unbroken)
    course = Course.of(stages, 30, 8, 32)
    assert {line["step"]: line["tokens"] for line in read_lines(unbroken / METRICS)} == {
        step: course.tokens(step) for step in range(1, 31)
    }
    for name in ("step-000020", "step-000030"):
        folder = unbroken / CHECKPOINTS / name
        if name == "step-000030":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    train_here(unbroken)
    assert events(unbroken, "resumed")[-1]["step"] == 20
    assert losses(unbroken) == before

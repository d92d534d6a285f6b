"""The arithmetic of the benchmark of tokens to the baseline's loss, and that its runs are what the trainer takes."""

import math
from pathlib import Path

import pytest

from tests.bench.trainer.tokens_to_loss import STACKS, config_of, folder_of, share_to_reach, table
from trainer.contract import RunConfig


def test_the_share_is_read_from_a_line_over_the_logarithm() -> None:
    assert share_to_reach(2.3, {0.25: 2.5, 0.5: 2.3}) == pytest.approx(0.5)
    assert share_to_reach(2.4, {0.25: 2.5, 0.5: 2.3}) == pytest.approx(0.25 * math.sqrt(2))


def test_every_stack_is_a_config_and_counts_its_share(tmp_path: Path) -> None:
    for stack in STACKS:
        config = config_of(tmp_path, "text", stack, 400, 1)
        assert RunConfig.from_json(config.to_json()) == config
        assert config.train.steps == stack.share * 400
    assert len({folder_of(tmp_path, "text", stack, 400, 1) for stack in STACKS}) == len(STACKS)


def test_runs_that_have_not_ended_are_not_in_the_table(tmp_path: Path) -> None:
    assert len(list(table(tmp_path, ["text"], 400, [1, 2]))) == 2

"""The arithmetic of the benchmark of tokens to the baseline's loss, and that its runs are what the trainer takes."""

import json
import math
from pathlib import Path

import pytest

from tests.bench.trainer.short_stories import stories
from tests.bench.trainer.tokens_to_loss import BASE, SIZES, STACKS, Case, config_of, share_to_reach, table
from trainer.contract import RunConfig
from trainer.run_files import EVENTS


def test_the_share_is_read_from_a_line_over_the_logarithm() -> None:
    assert share_to_reach(2.3, {0.25: 2.5, 0.5: 2.3}) == pytest.approx(0.5)
    assert share_to_reach(2.4, {0.25: 2.5, 0.5: 2.3}) == pytest.approx(0.25 * math.sqrt(2))


@pytest.mark.parametrize("size", SIZES)
def test_every_stack_is_a_config_and_sees_its_share(tmp_path: Path, size: str) -> None:
    baseline = Case(tmp_path, "text", BASE, size, 1)
    for stack in STACKS:
        case = Case(tmp_path, "text", stack, size, 1)
        config = config_of(case)
        assert RunConfig.from_json(config.to_json()) == config
        assert case.tokens == pytest.approx(stack.share * baseline.tokens, rel=0.02)
    assert len({Case(tmp_path, "text", stack, size, 1).folder for stack in STACKS}) == len(STACKS)


def test_the_table_has_the_finished_runs_and_compares_seed_with_seed(tmp_path: Path) -> None:
    for stack, losses in ((BASE, (2.4, 2.6)), (STACKS[1], (2.2,)), (STACKS[2], (2.5,))):
        for seed, loss in enumerate(losses, 1):
            case = Case(tmp_path, "text", stack, "0.9m", seed)
            case.folder.mkdir()
            events = ({"event": "validated", "val_loss": loss}, {"event": "finished"})
            (case.folder / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events))
    unfinished = Case(tmp_path, "text", STACKS[3], "0.9m", 1)
    unfinished.folder.mkdir()
    (unfinished.folder / EVENTS).write_text('{"event": "validated", "val_loss": 1.0}\n')
    rows = list(table(tmp_path, ["text"]))
    assert rows[2:] == [
        "| text | 0.9m | baseline | 409,600 | 1.00 | 2.5000 ± 0.1414 (2.4000, 2.6000) |  |",
        "| text | 0.9m | plain | 204,800 | 0.50 | 2.2000 (2.2000) | +0.2000 |",
        "| text | 0.9m | plain | 102,400 | 0.25 | 2.5000 (2.5000) | -0.1000 |",
        "text, 0.9m: plain reaches the baseline's loss with 0.31 of its tokens, by seed",
    ]


def test_stories_are_the_same_every_time_and_plain_ascii() -> None:
    text = stories(20_000)
    assert text == stories(20_000) != stories(20_000, seed=1)
    assert 20_000 <= len(text) < 21_500
    assert b"{" not in text

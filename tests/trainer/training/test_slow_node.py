"""Which of several nodes holds up the others, by the time of the forward passes of all ranks."""

from __future__ import annotations

import torch

from trainer.training.metrics import SLOW_LINES, SlowNode
from trainer.training.ranks import World


def test_a_slow_node_is_named_once_after_many_lines_in_a_row() -> None:
    slow = SlowNode(World(0, 4, 0, torch.device("cpu"), nodes=2))
    usual, late = [1.0, 1.0, 1.1, 1.2], [1.0, 1.0, 1.9, 2.1]
    assert [slow.node(late) for _ in range(SLOW_LINES - 1)] == [None] * (SLOW_LINES - 1)
    assert slow.node(usual) is None
    assert [slow.node(late) for _ in range(SLOW_LINES)] == [None] * (SLOW_LINES - 1) + [1]
    assert slow.words(1) == "node 1 is slow: its forward passes take 2.0x those of the others, which wait for it"
    assert [slow.node(late) for _ in range(2 * SLOW_LINES)] == [None] * 2 * SLOW_LINES


def test_steps_between_log_lines_say_nothing_of_a_slow_node() -> None:
    slow = SlowNode(World(0, 2, 0, torch.device("cpu"), nodes=2))
    for _ in range(SLOW_LINES - 1):
        slow.node([1.0, 2.0])
        slow.node([0.0, 0.0])
    assert slow.node([1.0, 2.0]) == 1

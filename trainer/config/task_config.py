"""What a run trains for: [task] of config.json. Standard library only, like contract.py.

Example::

    TaskConfig(kind="instruct", lora=LoraConfig(rank=8, alpha=16.0))
    TaskConfig(kind="classify", labels=("ham", "spam"))
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

PRETRAIN, INSTRUCT, CLASSIFY = "pretrain", "instruct", "classify"
KINDS = (PRETRAIN, INSTRUCT, CLASSIFY)
LORA_TARGETS = ("qkv", "attention_out", "mlp_up", "mlp_down")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): W x + alpha / rank * B A x, where only A and B learn."""

    rank: int = 8
    alpha: float = 16.0
    targets: typing.Tuple[str, ...] = LORA_TARGETS
    """Projections of every block that get one."""
    dropout: float = 0.0
    """Of the adapter's input."""


@dataclass(frozen=True)
class TaskConfig:
    """`pretrain`: the next token of a stream. `instruct`: the response of each example. `classify`: its label."""

    kind: str = PRETRAIN
    prompt: str = "alpaca"
    """Of instruct: `alpaca`, or a text with {instruction} and, where examples have one, {input}."""
    labels: typing.Tuple[str, ...] = ()
    """Of classify: the classes, in the order of the head's rows."""
    lora: typing.Optional[LoraConfig] = None
    """None: every weight learns."""


@dataclass(frozen=True)
class SamplingConfig:
    """How a finished model's samples are drawn."""

    tokens: int = 64
    temperature: float = 1.0
    top_k: int = 50  # 0: of all tokens
    top_p: float = 1.0


def task_from(value: object) -> TaskConfig:
    """The task of a meta.json. Raises TypeError or ValueError for what this version does not know."""
    if not isinstance(value, dict):
        raise TypeError("a task is a table, not %r" % (value,))
    lora = value.get("lora")
    made = None if lora is None else LoraConfig(**dict(lora, targets=tuple(lora["targets"])))
    return TaskConfig(**dict(value, labels=tuple(value.get("labels", ())), lora=made))

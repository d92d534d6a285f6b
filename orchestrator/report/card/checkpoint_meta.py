"""meta.json of a checkpoint, as far as the model card needs it.

Example::

    CheckpointMeta.from_json({"step": 100, "model": {"n_layer": 12, ...}}).model.n_layer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.config.task_config import PRETRAIN
from trainer.contract import ModelConfig


@dataclass(frozen=True)
class CheckpointMeta:
    """None for what the file does not say, or says as another type."""

    model: ModelConfig
    step: int | None = None
    total_steps: int | None = None
    tokens: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    tokenizer: str | None = None
    task: str = PRETRAIN
    accuracy: float | None = None
    """Of a classifier, on its held-out examples."""

    @staticmethod
    def from_json(value: Mapping[str, object]) -> CheckpointMeta:
        """Raises TypeError for a `model` that is not a table of this trainer's ModelConfig."""
        model = value.get("model")
        if not isinstance(model, Mapping):
            raise TypeError("no table `model`")
        step, total_steps, tokens = (
            each if type(each) is int else None for each in map(value.get, ("step", "total_steps", "tokens"))
        )
        loss, val_loss = (each if isinstance(each, float) else None for each in map(value.get, ("loss", "val_loss")))
        tokenizer, task, accuracy = map(value.get, ("tokenizer", "task", "accuracy"))
        kind = task.get("kind") if isinstance(task, Mapping) else None
        return CheckpointMeta(
            ModelConfig(**model),
            step,
            total_steps,
            tokens,
            loss,
            val_loss,
            tokenizer if isinstance(tokenizer, str) else None,
            kind if isinstance(kind, str) else PRETRAIN,
            accuracy if isinstance(accuracy, float) else None,
        )

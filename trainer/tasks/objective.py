"""Makes a GPT learn a task: which positions its loss counts, a head for classes, and which weights learn.

Example::

    model = GPT(config.model)
    apply_task(model, config.task)                  # before its checkpoint is loaded, after foreign weights are
    loss = model(ids, targets)                      # targets: IGNORED where nothing is counted
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.arithmetic import table_columns
from trainer.config.task_config import CLASSIFY, KINDS, PRETRAIN, TaskConfig
from trainer.contract import ContractError
from trainer.model.gpt import GPT, chunked_cross_entropy, tensor_generator
from trainer.tasks.lora import add_adapters, merged
from trainer.tokens.example_rows import IGNORED

CLASSIFIER = "classifier"


def apply_task(model: GPT, task: TaskConfig) -> None:
    """Changes the model in place. Raises ContractError for a task that is unknown or contradicts itself."""
    if task.kind not in KINDS:
        raise ContractError(f"task.kind must be one of {', '.join(KINDS)}, got {task.kind!r}")
    if task.lora is not None:
        if task.kind == PRETRAIN:
            raise ContractError("task.lora: adapters need a task: set task.kind to instruct or classify")
        add_adapters(model, task.lora)
    if task.kind == CLASSIFY:
        _add_head(model, task)
        model.objective = lambda hidden, targets: _class_loss(model, hidden, targets)
    elif task.kind != PRETRAIN:
        model.objective = lambda hidden, targets: _counted_loss(model, hidden, targets)


def plain_state(state: Mapping[str, Tensor], task: TaskConfig) -> dict[str, Tensor]:
    """The tensors of a model without its task: adapters merged, the head for classes left out."""
    whole = merged(state, task.lora) if task.lora is not None else state
    return {name: tensor for name, tensor in whole.items() if not name.startswith(f"{CLASSIFIER}.")}


def _add_head(model: GPT, task: TaskConfig) -> None:
    """One row per class, without a bias, as transformers' GPT2ForSequenceClassification has it."""
    if len(task.labels) < 2 or len(set(task.labels)) < len(task.labels):
        raise ContractError(f"task.labels: must be at least two different classes, got {list(task.labels)}")
    head = nn.Linear(model.config.n_embd, len(task.labels), bias=False)
    generator = tensor_generator(torch.initial_seed(), f"{CLASSIFIER}.weight")
    nn.init.normal_(head.weight, std=0.02, generator=generator)
    model.add_module(CLASSIFIER, head)
    # What makes logits of tokens gets no gradient, and every rank would wait for one.
    if not model.config.tie_embeddings:
        model.head.weight.requires_grad_(False)
    if table_columns(model.config, "output") != model.config.n_embd:
        model.head_down.requires_grad_(False)


def is_classifier(model: GPT) -> bool:
    """Whether the model has a head for classes."""
    return CLASSIFIER in dict(model.named_children())


def class_logits(model: GPT, hidden: Tensor) -> Tensor:
    """Logits (rows, classes) of hidden (rows, n_embd), those of the last token of each text."""
    head: Tensor = model.get_submodule(CLASSIFIER)(hidden)
    return head


def _class_loss(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per example. hidden (tokens, n_embd), targets (tokens,)."""
    chosen = targets != IGNORED
    return F.cross_entropy(class_logits(model, hidden[chosen]).float(), targets[chosen])


def _counted_loss(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per counted token; the logits of the others are never computed."""
    chosen = targets != IGNORED
    return chunked_cross_entropy(
        model.before_head(hidden[chosen]),
        model.head.weight,
        targets[chosen],
        model.config.vocab_size,
        model.loss_of_chunk,
    )


class Score(NamedTuple):
    """Of some examples: cross-entropy in nats summed over them, how many there are, and how many are right."""

    nats: float
    examples: int
    right: int


@torch.no_grad()
def class_score(model: GPT, ids: Tensor, targets: Tensor) -> Score:
    """Of a batch of texts. ids, targets: (batch, time) int64."""
    hidden = model.hidden(ids)
    chosen = targets != IGNORED
    logits, labels = class_logits(model, hidden[chosen]).float(), targets[chosen]
    nats = F.cross_entropy(logits, labels, reduction="sum")
    return Score(float(nats), len(labels), int((logits.argmax(dim=-1) == labels).sum()))

"""The recipe's tables [task] and [eval]: what the model is trained for, and what is measured at the end.

It must not look at files.

Example: `Task(kind="classify", labels=("ham", "spam")).config()`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from orchestrator.core.config.recipe_tables.data_tables import Position, Tokens
from orchestrator.core.config.toml_tables import Line, Table
from trainer.config.task_config import CLASSIFY, INSTRUCT, PRETRAIN, LoraConfig, SamplingConfig, TaskConfig
from trainer.contract import ModelConfig

Target = Literal["qkv", "attention_out", "mlp_up", "mlp_down"]


class Lora(Table):
    """Low-rank adapters: only they learn. Without this table every weight does."""

    rank: int = Field(default=LoraConfig.rank, ge=1, le=10_000)
    """Of the update of a projection."""
    alpha: float = Field(default=LoraConfig.alpha, gt=0, le=1_000_000)
    """The update counts alpha / rank."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("qkv", "attention_out", "mlp_up", "mlp_down")
    """Projections of every block that get an adapter."""
    dropout: float = Field(default=LoraConfig.dropout, ge=0, lt=1)
    """Of the adapters' input."""


class Task(Table):
    """What the model is trained for. `[data.prepare]` then reads examples in place of text."""

    kind: Literal["pretrain", "instruct", "classify"] = "pretrain"
    """`pretrain`: the next token. `instruct`: Alpaca's `instruction`, `input`, `output`; the loss counts the response.
    `classify`: the class of a text, by its last token."""
    examples: int | None = Field(default=None, ge=1, le=10**12)
    """How many examples to train on, over all epochs, instead of train.tokens; each fills model.context_length."""
    prompt: Annotated[str, StringConstraints(min_length=1, max_length=10_000)] = TaskConfig.prompt
    """Of `instruct`: `alpaca`, or a text with {instruction} and {input}."""
    labels: tuple[Line, ...] = ()
    """Of `classify`: the classes. An example of another class, and a class without examples, is an error."""
    text_column: Line = "text"
    """Of `classify`: the key or column of the text."""
    label_column: Line = "label"
    """Of `classify`: the key or column of the class."""
    lora: Lora | None = None
    """[task.lora]"""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.kind == CLASSIFY and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError('kind = "classify" needs labels, at least two different ones')
        if self.kind != CLASSIFY and self.labels:
            raise ValueError('labels are for kind = "classify"')
        if self.kind == INSTRUCT and self.prompt != TaskConfig.prompt and "{instruction}" not in self.prompt:
            raise ValueError("prompt must be `alpaca`, or a text with {instruction} in it")
        if self.kind == PRETRAIN and (self.lora or self.examples):
            raise ValueError('lora and examples need kind = "instruct" or "classify"')
        return self

    def config(self) -> TaskConfig:
        """The trainer's value."""
        lora = LoraConfig(**self.lora.model_dump()) if self.lora else None
        return TaskConfig(self.kind, self.prompt, self.labels, lora)

    def request(self, length: int, examples: int | None) -> str | None:
        """The value of `trainer.prepare --task` for rows of so many tokens; None where it prepares a stream."""
        if self.kind == PRETRAIN:
            return None
        columns = {"text_column": self.text_column, "label_column": self.label_column}
        own = {"prompt": self.prompt} if self.kind == INSTRUCT else {"labels": list(self.labels), **columns}
        return json.dumps({"kind": self.kind, "length": length, **own, **({"examples": examples} if examples else {})})


class Evaluation(Table):
    """What is measured at the end, on the machine."""

    slices: tuple[tuple[Position, Tokens], ...] = ()
    """Pairs of first token and length, in the validation file: the loss of each is reported."""
    choices: tuple[Line, ...] = ()
    """Multiple choice that `gptctl eval` measures too: `hellaswag`, a file in its format, or such a file's URI."""
    prompts: tuple[Annotated[str, StringConstraints(min_length=1, max_length=10_000)], ...] = ()
    """Beginnings the finished model continues; of `instruct`, instructions that it answers."""
    sample_tokens: int = Field(default=SamplingConfig.tokens, ge=1, le=100_000)
    """The longest of these texts, in tokens."""
    temperature: float = Field(default=SamplingConfig.temperature, ge=0, le=100)
    """Of the samples; 0: the likeliest token."""
    top_k: int = Field(default=SamplingConfig.top_k, ge=0, le=10_000_000)
    """Draw from the K likeliest tokens; 0: from all."""
    top_p: float = Field(default=SamplingConfig.top_p, gt=0, le=1)
    """Draw from the likeliest tokens that together reach P; 1: from all."""

    def sampling(self) -> SamplingConfig:
        """The trainer's value."""
        return SamplingConfig(self.sample_tokens, self.temperature, self.top_k, self.top_p)


def check_evaluation(task: Task, evaluation: Evaluation) -> None:
    """Raises ValueError for what a task's model cannot do."""
    if task.kind != PRETRAIN and evaluation.slices:
        raise ValueError("eval.slices measure streams of text; a task validates on its held-out examples")
    if task.kind == CLASSIFY and evaluation.prompts:
        raise ValueError("eval.prompts: a classifier writes no text")


def with_tokens(recipe: dict[str, object]) -> dict[str, object]:
    """A recipe's raw tables, with train.tokens where [task] examples say how far to train. What is wrong stays so."""
    task, model, train = (recipe.get(name) or {} for name in ("task", "model", "train"))
    if not (isinstance(task, Mapping) and isinstance(model, Mapping) and isinstance(train, Mapping)):
        return recipe
    examples, length = task.get("examples"), model.get("context_length", ModelConfig.context_length)
    if type(examples) is not int or type(length) is not int:
        return recipe
    return {**recipe, "train": {**train, "tokens": examples * length}}

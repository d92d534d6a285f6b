"""The recipe: what to train and how far, as a frozen value read from a TOML file. No hosts, no secrets, no machine.

The tables and their defaults are those of trainer.contract, with ranges and help added; docs/reference/recipe.md is
made from them. It must not know about providers or runs.

Example::

    recipe = load_recipe("chinchilla_163m", overrides=["train.seed=7"])
    recipe.train.learning_rate, recipe.digest
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from orchestrator.core.config import bundled_files
from orchestrator.core.config.recipe_tables.data_tables import Data, Tokens, lay_over
from orchestrator.core.config.recipe_tables.model_table import Model
from orchestrator.core.config.recipe_tables.published import Published
from orchestrator.core.config.recipe_tables.task_tables import Evaluation, Task, check_evaluation, with_tokens
from orchestrator.core.config.toml_tables import (
    NAME_PATTERN,
    RECIPE_NAME_PATTERN,
    Fraction,
    Table,
    build,
    read_toml,
)
from orchestrator.core.errors import UserError
from orchestrator.core.suggest import nearest
from trainer.arithmetic.schedule import Course, check_stages, steps_for_stages
from trainer.config.config_tables import RateFactors as ContractFactors
from trainer.config.config_tables import Stage
from trainer.config.task_config import PRETRAIN
from trainer.contract import RetentionConfig, TrainConfig

DEEPEST_EXTENDS = 5

Every = Annotated[int, Field(ge=0, le=10**9)]
MachineName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


ShareOfSteps = Annotated[float, Field(gt=0, lt=1)]
Factor = Annotated[float, Field(ge=0, le=1_000)]


class RateFactors(Table):
    """By what the learning rate of each kind of tensor is multiplied."""

    token_embedding: Factor = ContractFactors.token_embedding
    """The token embedding, and the head that is tied to it."""
    position_embedding: Factor = ContractFactors.position_embedding
    """The learned positions."""
    head: Factor = ContractFactors.head
    """A head of its own; with tie_embeddings set it to the factor of token_embedding."""
    qkv: Factor = ContractFactors.qkv
    """Query, key and value projections."""
    attention_out: Factor = ContractFactors.attention_out
    """Attention's output projections."""
    mlp_up: Factor = ContractFactors.mlp_up
    """First matrices of the MLPs."""
    mlp_down: Factor = ContractFactors.mlp_down
    """Second matrices of the MLPs."""
    vectors: Factor = ContractFactors.vectors
    """Biases, norms and scalars."""


class Train(Table):
    """How far and how to train. Nothing here depends on the machine."""

    tokens: Tokens | Literal["chinchilla", "all"] = "chinchilla"
    """A number, `chinchilla` (20 x parameters) or `all` (one epoch); always rounded up to a whole global batch."""
    max_epochs: float | None = Field(default=None, gt=0, le=1_000_000)
    """Refuses a run that would see the data more often; without it further epochs are reshuffled and said."""
    global_batch: int = Field(default=TrainConfig.global_batch, ge=1, le=1_000_000)
    """Sequences per optimizer step, over all GPUs. Never depends on the machine."""
    stages: tuple[tuple[ShareOfSteps, Annotated[int, Field(ge=1, le=1_000_000)], Annotated[int, Field(ge=1)]], ...] = ()
    """First parts of the run, each [end as a part of all steps, sequences per step, tokens per sequence]; then
    global_batch and context_length hold. `[[0.3, 384, 256]]`: until 30 % of the steps, 384 sequences of 256 tokens."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the hidden matrices, AdamW for the rest."""
    split_qkv: bool = TrainConfig.split_qkv
    """Muon makes query, key and value projections orthogonal each by itself, not as one matrix."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = TrainConfig.betas
    """AdamW's two decay rates."""
    weight_decay: float = Field(default=TrainConfig.weight_decay, ge=0, le=10)
    """Decoupled weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """Which tensors decay: those with two dimensions or more, or all."""
    learning_rate: float = Field(default=TrainConfig.learning_rate, gt=0, le=10)
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "cosine"
    """Course of the learning rate after warm-up; `wsd` is warm-up, stable, decay."""
    decay_fraction: Fraction = TrainConfig.decay_fraction
    """Part of the steps after warm-up, the last ones, in which the learning rate of `wsd` falls."""
    warmup_fraction: Fraction = TrainConfig.warmup_fraction
    """Part of all steps in which the learning rate rises from 0."""
    min_learning_rate_fraction: Fraction = TrainConfig.min_learning_rate_fraction
    """Last learning rate as a part of the peak."""
    grad_clip: float | None = Field(default=TrainConfig.grad_clip, ge=0, le=1_000_000)
    """Largest gradient norm; 0 or absent: no clipping."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Compute type. `fp16` scales gradients; a card without bf16 answers `bf16` with fp16."""
    tf32: bool = TrainConfig.tf32
    """TF32 matrix products where fp32 is left."""
    compile: bool | None = TrainConfig.compile
    """torch.compile; absent: on for CUDA, off on CPU."""
    activation_checkpointing: bool = TrainConfig.activation_checkpointing
    """Recomputes activations in the backward pass: less memory, about a third more time."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How GPUs share a model: `ddp`, a whole copy each; `fsdp`, its part each, for models that do not fit one card."""
    zero_stage: Literal[0, 1] = 0
    """1: each GPU keeps the optimizer state of its share of the weights only (ZeRO)."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of gradients between GPUs; `bf16` halves the traffic, for machines whose cards talk over PCIe."""
    seed: int = Field(default=TrainConfig.seed, ge=0, le=2**63 - 1)
    """Decides initial weights (per tensor, by its name), token order and dropout."""
    log_every: int = Field(default=TrainConfig.log_every, ge=1, le=10**9)
    """Steps between two lines of metrics."""
    checkpoint_every: int = Field(default=TrainConfig.checkpoint_every, ge=1, le=10**9)
    """Steps between two checkpoints; the last step always has one."""
    validate_every: int = Field(default=TrainConfig.validate_every, ge=1, le=10**9)
    """Steps between two validations; the last step always has one."""
    keep_last: int = Field(default=RetentionConfig.keep_last, ge=1, le=10**6)
    """Keeps the newest checkpoints; the best one is always kept."""
    keep_every: Every = RetentionConfig.keep_every
    """Also keeps the checkpoints of every so many steps; 0: none."""
    rate_factors: RateFactors = RateFactors()
    """[train.rate_factors]"""
    max_nonfinite_steps: int = Field(default=TrainConfig.max_nonfinite_steps, ge=1, le=10**6)
    """Steps in a row with NaN or infinite gradients after which the run fails."""
    skip_back: bool = TrainConfig.skip_back
    """Then the next of its `restarts` goes back to a checkpoint before them and skips the batches that led there."""
    restarts: int | None = Field(default=None, ge=0, le=100)
    """How often a training that dies starts again from its newest checkpoint; absent: once on a machine you pay for,
    three times on your own."""
    process_group_timeout_s: float = Field(default=TrainConfig.process_group_timeout_s, ge=10, le=86_400)
    """How long one GPU waits for another before the run fails."""


class Limits(Table):
    """What a run may cost. A plan beyond a limit is refused before anything is bought."""

    max_cost_usd: float | None = Field(default=None, gt=0, le=10_000_000)
    """Ceiling over everything the run pays, USD before tax."""
    max_hours: float | None = Field(default=None, gt=0, le=100_000)
    """Longest time from renting to release."""
    max_price_per_hour_usd: float | None = Field(default=None, gt=0, le=10_000)
    """Dearest machine that may be rented."""
    hold_h: float | None = Field(default=None, ge=0, le=1_000)
    """Hours a machine waits after training for a laptop that is away; absent: until the budget deadline."""


def check_sharding(train: Train, task: str) -> None:
    """Raises ValueError for what fsdp cannot do; the trainer refuses the same."""
    if train.optimizer == "muon":
        raise ValueError(
            "train.parallel must be ddp with optimizer = muon: fsdp cuts the matrices that Muon needs whole"
        )
    if train.zero_stage:
        raise ValueError(
            "train.zero_stage must be 0 with parallel = fsdp, which shares out the optimizer's state already"
        )
    if task != PRETRAIN:
        raise ValueError(f"train.parallel must be ddp with [task] kind = {task}: fsdp trains the next token only")


class MachineRow(Table):
    """What one machine type gets of its own. A machine without a row gets `micro_batch = "auto"`."""

    micro_batch: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = "auto"
    """Sequences per forward pass of one GPU; `auto`: the largest that fits and divides the global batch."""
    max_cost_usd: float | None = Field(default=None, gt=0, le=10_000_000)
    """As in [limits], for this machine type."""
    max_hours: float | None = Field(default=None, gt=0, le=100_000)
    """As in [limits], for this machine type."""
    max_price_per_hour_usd: float | None = Field(default=None, gt=0, le=10_000)
    """As in [limits], for this machine type."""


class Recipe(Table):
    """A recipe file. `extends = "PATH"` at its top lays it over another one, table by table."""

    name: str = Field(pattern=RECIPE_NAME_PATTERN)
    """Part of every run's id: lower-case letters, digits, `_`, `.` and `-`."""
    description: Annotated[str, StringConstraints(max_length=2_000)] = ""
    """One line for lists and the model card."""
    model: Model = Model()
    """[model]"""
    data: Data
    """[data]"""
    train: Train = Train()
    """[train]"""
    task: Task = Task()
    """[task]"""
    eval: Evaluation = Evaluation()
    """[eval]"""
    machines: dict[MachineName, MachineRow] = Field(default_factory=dict)
    """[machines."8xA100-40GB"] and so on, by machine type"""
    limits: Limits = Limits()
    """[limits]"""
    published: tuple[Published, ...] = ()
    """[[published]]"""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_stages(self.stages, self.model.context_length)
        check_evaluation(self.task, self.eval)
        if self.task.lora is not None and self.train.zero_stage:
            raise ValueError("train.zero_stage must be 0 with [task.lora]: adapters have little state to share out")
        if self.train.parallel == "fsdp":
            check_sharding(self.train, self.task.config().kind)
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        """[train] stages as the trainer has them."""
        return tuple(Stage(*row) for row in self.train.stages)

    def steps_for(self, tokens: int) -> int:
        """Optimizer steps that see at least so many tokens."""
        return steps_for_stages(tokens, self.stages, self.train.global_batch, self.model.context_length)

    def course(self, steps: int) -> Course:
        """Which of these steps train on what."""
        return Course.of(self.stages, steps, self.train.global_batch, self.model.context_length)

    @field_validator("description")
    @classmethod
    def _on_one_line(cls, text: str) -> str:
        return " ".join(text.split())

    def resolved(self) -> dict[str, object]:
        """Everything, defaults included, as JSON-able values: what the ledger stores."""
        return self.model_dump(mode="json")

    @classmethod
    def from_resolved(cls, value: Mapping[str, object]) -> Recipe:
        """The recipe that resolved() came from. UserError when the stored value does not fit this version."""
        return build(cls, value, f"stored recipe {value.get('name', '?')}")

    @cached_property
    def digest(self) -> str:
        """sha256 over the resolved values, hex: equal for two files that say the same."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()

    def micro_batch_for(self, machine: str) -> int | None:
        """The micro-batch this recipe wants on a machine type; None for auto."""
        row = self.machines.get(machine, MachineRow())
        return None if row.micro_batch == "auto" else row.micro_batch


def search_folders() -> tuple[Path, ...]:
    """Where a recipe named without a path is looked for: ./recipes, then the recipes that come with gptctl."""
    return (Path("recipes"), bundled_files.recipes_folder())


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), search: Sequence[Path] | None = None) -> Recipe:
    """Reads a recipe by path or by name, lays it over what it extends, applies `--set KEY=VALUE` and validates.

    Raises UserError naming the file, the key, the nearest known key, and what would be right.
    """
    path = find_recipe(name_or_path, search_folders() if search is None else search)
    table = _read_extended(path, seen=())
    for override in overrides:
        table = lay_over(table, _override(override), f"--set {override}")
    return build(Recipe, with_tokens(table), f"recipe {path}" + (" with --set" if overrides else ""))


def find_recipe(name_or_path: str, search: Sequence[Path]) -> Path:
    """The file of a recipe given as path (`recipes/x.toml`) or name (`x`, `interventions/x`)."""
    if not name_or_path.isprintable() or not name_or_path.strip():
        raise UserError(
            f"{name_or_path!r} is not the name of a recipe", hint="give a path, or a name `gptctl plan` lists"
        )
    direct = Path(name_or_path).expanduser()
    if direct.is_file():
        return direct
    name = name_or_path.removesuffix(".toml")
    for folder in search:
        if (folder / f"{name}.toml").is_file() and ".." not in Path(name).parts:
            return folder / f"{name}.toml"
    known = known_recipes(search)
    near = nearest(name, known) or nearest(Path(name).name, known)
    hint = f"did you mean {near}? gptctl recipes lists all" if near else f"gptctl recipes lists all {len(known)}"
    raise UserError(f"unknown recipe {name_or_path}", hint=hint)


def known_recipes(search: Sequence[Path]) -> list[str]:
    """Names of all recipes in the search folders, such as `quickstart` or `interventions/qkv_bias`, sorted."""
    found = {path.relative_to(folder).with_suffix("") for folder in search for path in folder.rglob("*.toml")}
    return sorted(str(path) for path in found)


def _read_extended(path: Path, seen: tuple[Path, ...]) -> dict[str, object]:
    table = read_toml(path, "recipe")
    below = table.pop("extends", None)
    if below is None:
        return lay_over({}, table, f"recipe {path}")
    chain = (*seen, path.resolve())
    if not isinstance(below, str):
        raise UserError(f"recipe {path}: extends: must be the path of another recipe, got {below!r}")
    target = path.parent / below
    if target.resolve() in chain:
        raise UserError(f"recipe {path}: extends {below}, which extends this one again")
    if len(chain) > DEEPEST_EXTENDS:
        raise UserError(f"recipe {path}: more than {DEEPEST_EXTENDS} recipes extend each other")
    if not target.is_file():
        raise UserError(f"recipe {path}: extends {below}, but {target} does not exist")
    return lay_over(_read_extended(target, chain), table, f"recipe {path}")


def _override(text: str) -> dict[str, object]:
    """`a.b=v` as {"a": {"b": v}}. The value is TOML (7, true, [1, 2]), else taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not text.isprintable():
        raise UserError(f"--set {text!r}: must be KEY=VALUE, such as train.seed=7")
    for candidate in (value, json.dumps(value)):
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
    raise UserError(f"--set {text!r}: {key.strip()!r} is not a key", hint='such as machines."8xH100".micro_batch=12')

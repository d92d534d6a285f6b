"""The tables of a model card: known values become rows, unknown ones do not.

It must neither read files nor put tables together. A row is a label and a cell, ready for Markdown.

    model(meta) -> [("Parameters", "163,009,536"), ("Layers", "12"), ...]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from orchestrator.core import formats
from orchestrator.core.facts.run_facts import DatasetFacts
from orchestrator.core.formats import count, dollars, figure, hours, number, percent
from orchestrator.core.machines import MachineType
from orchestrator.ledger.records import RecipeTables, RunRecord
from orchestrator.report.card.checkpoint_meta import CheckpointMeta
from orchestrator.report.data_source import source_name
from orchestrator.report.evaluations import CHOICES, SLICE, EvaluationRow
from orchestrator.report.judged import JUDGE, Judged, scores_of
from orchestrator.report.pages.markdown import text
from orchestrator.report.run_report import LineagePart, MachinePart, RunReport
from trainer.arithmetic import active_parameter_count, parameter_count
from trainer.config.task_config import PRETRAIN
from trainer.contract import ModelConfig

Row = tuple[str, str]

REFERENCE_SOURCE = "hf://gpjt/fineweb-gpt2-tokens"
REFERENCE_SLICE = [50_000_000, 19_660_800]
REFERENCE_CONTEXT = 1024
ANCHOR_LOSS = 3.4997
"""OpenAI's GPT-2 small on the reference slice, as the author of the reference trainer measured it."""


def _rows(pairs: Iterable[tuple[str, str | None]]) -> list[Row]:
    return [(label, cell) for label, cell in pairs if cell]


def _known(value: object, form: str = "{}") -> str | None:
    """The value in words, or None if it is unknown. Whole numbers get thousands separators."""
    if value is None or value == "":
        return None
    shown = number(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
    return form.format(shown)


def model(meta: CheckpointMeta) -> list[Row]:
    """Architecture and size."""
    shape = meta.model
    head = "shares the token embedding's weights" if shape.tie_embeddings else "has weights of its own"
    return _rows(
        [
            ("Architecture", _architecture(shape)),
            ("Parameters", number(parameter_count(shape))),
            ("Layers", number(shape.n_layer)),
            ("Attention heads", number(shape.n_head)),
            ("Width", number(shape.n_embd)),
            ("Context", f"{number(shape.context_length)} tokens"),
            ("Vocabulary", f"{number(shape.vocab_size)} ids"),
            ("Tokenizer", _known(meta.tokenizer, "`{}`")),
            ("Output head", head),
            ("Experts", _experts(shape)),
            ("Tables over the vocabulary", _low_rank(shape)),
            ("Query, key and value biases", "yes" if shape.qkv_bias else "none"),
            ("Other biases", "yes" if shape.bias else "none"),
        ]
    )


def _architecture(shape: ModelConfig) -> str:
    """GPT-2's, or what of it the options replace."""
    positions = "rotary" if shape.rope else "learned"
    activation = "ReLU squared" if shape.activation == "relu2" else "tanh GELU"
    parts = f"pre-LayerNorm blocks, {positions} positions, {activation}, causal attention"
    added = [", QK-norm"] * shape.qk_norm + [", value residuals"] * shape.value_residual
    changed = shape.rope or shape.activation == "relu2" or added
    return ("like GPT-2: " if changed else "GPT-2: ") + parts + "".join(added)


def _experts(shape: ModelConfig) -> str | None:
    if not shape.experts:
        return None
    active = number(active_parameter_count(shape))
    return f"{shape.active_experts} of {shape.experts} for each token, which are {active} parameters"


def _low_rank(shape: ModelConfig) -> str | None:
    if not shape.embedding_rank:
        return None
    which = {"input": "the input's", "output": "the output's"}.get(shape.low_rank, "both")
    return f"products through {number(shape.embedding_rank)} columns: {which}"


def data(
    recipe: RecipeTables, dataset: DatasetFacts, meta: CheckpointMeta, lineage: LineagePart | None = None
) -> list[Row]:
    """What it was trained and validated on."""
    table = recipe.get("data") or {}
    train_tokens = dataset.train_tokens
    origin = lineage.origin if lineage is not None else None
    seen = lineage.own_tokens if lineage is not None and origin is not None else meta.tokens
    before = [f"{number(each.tokens)} of {text(each.source)}" for each in origin.seen] if origin else []
    epochs = f"{seen / train_tokens:.3g}" if seen and train_tokens else None
    return _rows(
        [
            ("Source", text(source_name(recipe))),
            ("Documents", _known(dataset.documents)),
            ("Training tokens in the dataset", _known(train_tokens)),
            ("Tokens seen before", "; ".join(before) or None),
            ("Tokens trained on", _known(seen)),
            ("Epochs", epochs),
            ("Order", _known(table.get("order"))),
            ("Validation tokens in the dataset", _known(dataset.validation_tokens)),
            ("Mixture", text(dataset.mixture) if dataset.mixture else None),
            ("Overlap with other data", text(dataset.overlap) if dataset.overlap else "not checked"),
            ("sha256 of the data", _known(dataset.digest, "`{}`")),
        ]
    )


def training(run: RunRecord, meta: CheckpointMeta, report: RunReport, machine: MachineType) -> list[Row]:
    """How it was trained, and how fast."""
    recipe, measured = run.recipe_data.get("train") or {}, report.training
    context = meta.model.context_length
    batch = report.machine.global_batch
    took = {part.part: part.hours for part in report.parts}
    return _rows(
        [
            ("Task", _task(run.recipe_data.get("task") or {})),
            ("Accuracy on the held-out examples", None if meta.accuracy is None else percent(meta.accuracy)),
            ("Steps of this checkpoint", _of(meta.step, meta.total_steps)),
            ("Global batch", f"{number(batch)} sequences of {number(context)} tokens" if batch else None),
            ("Before that", _stages(recipe)),
            ("Micro-batch", _split(report.machine)),
            ("Optimizer", _optimizer(recipe)),
            ("Learning rate", _learning_rate(recipe)),
            ("Gradient clipping", f"{recipe['grad_clip']:g}" if recipe.get("grad_clip") else "none"),
            ("Dropout", f"{meta.model.dropout:g}"),
            ("Initialisation, seed", f"{meta.model.init}, {recipe.get('seed')}"),
            ("Precision", _known(recipe.get("precision"))),
            ("PyTorch", _known(run.facts.prepared and run.facts.prepared.torch)),
            ("Machine", _machine(run, machine)),
            ("Training time", hours(took["train"]) if took.get("train") else None),
            ("Total time", hours(took["total"]) if took.get("total") else None),
            ("Tokens per second", f"{count(rate)} (median)" if (rate := measured.tokens_per_second) else None),
            ("MFU", f"{percent(measured.mfu)} (median)" if measured.mfu and not machine.runs_as else None),
            ("Peak memory", f"{measured.memory_gib:.1f} GiB" if measured.memory_gib else None),
        ]
    )


def _task(task: Mapping[str, Any]) -> str | None:
    """None for the next token of a stream."""
    if task.get("kind", PRETRAIN) == PRETRAIN:
        return None
    lora = task.get("lora")
    how = f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}, on {', '.join(lora['targets'])}" if lora else None
    classes = f" ({', '.join(task['labels'])})" if task.get("labels") else ""
    return f"{task['kind']}{classes}; {how or 'every weight learned'}"


def _of(part: int | None, whole: int | None) -> str | None:
    if part is None:
        return None
    return number(part) if whole is None else f"{number(part)} of {number(whole)}"


def _split(machine: MachinePart) -> str | None:
    parts = [machine.micro_batch, machine.accumulation, machine.ranks]
    if None in parts:
        return None
    micro_batch, accumulation, ranks = (number(part) for part in parts)
    return f"{micro_batch} sequences x {accumulation} accumulation x {ranks} ranks"


def _stages(recipe: RecipeTables) -> str | None:
    """`until 10% of the steps 24 of 1,024; until 50% 384 of 256`; None without stages."""
    rows = [
        f"{100 * until:g}% {number(batch)} of {number(length)}" for until, batch, length in recipe.get("stages") or ()
    ]
    return "until " + "; until ".join(rows).replace("% ", "% of the steps ", 1) if rows else None


def _optimizer(recipe: RecipeTables) -> str | None:
    name = recipe.get("optimizer")
    if not name:
        return None
    betas = ", ".join(f"{beta:g}" for beta in recipe.get("betas") or ())
    split = ", query, key and value apart" if recipe.get("split_qkv") and name == "muon" else ""
    return f"{name}{split}, betas {betas}, weight decay {recipe.get('weight_decay'):g} on {recipe.get('decay')}"


def _learning_rate(recipe: RecipeTables) -> str | None:
    peak = recipe.get("learning_rate")
    if peak is None:
        return None
    course = f"{peak:g} at its peak, {recipe.get('schedule')}, warm-up {100 * recipe.get('warmup_fraction', 0):g}%"
    factors = [f"{name} x {value:g}" for name, value in (recipe.get("rate_factors") or {}).items() if value != 1]
    course += f" ({', '.join(factors)})" if factors else ""
    if recipe.get("schedule") == "constant":
        return course
    return f"{course}, down to {100 * recipe.get('min_learning_rate_fraction', 0):g}%"


def _machine(run: RunRecord, machine: MachineType) -> str:
    if machine.runs_as is not None:
        return f"{text(run.machine)}: simulated, computed on {machine.runs_as}"
    if machine.gpu is None:
        return f"{text(run.machine)} (no GPU)"
    return f"{text(run.machine)} ({machine.count} x {text(machine.gpu.name)})"


def cost(report: RunReport, machine: MachineType, host: Mapping[str, Any]) -> list[Row]:
    """Money if the machine had a price; energy as an upper bound, with what is assumed."""
    spent, price = report.cost, report.machine.price_per_hour_usd
    energy, intensity = spent.energy_kwh, spent.grid_kg_co2e_per_kwh
    grid = f"{figure(intensity)} kg per kWh" if energy else ""
    if host.get("grid_kg_co2e_per_kwh") is None:
        grid += " (assumed)"
    rate = spent.usd_per_billion_tokens
    return _rows(
        [
            ("Cost", f"{dollars(spent.cost_usd)} before tax, at {dollars(price)} per hour" if price else None),
            ("Cost per billion tokens", dollars(rate) if price and rate is not None else None),
            ("GPU hours", figure(spent.gpu_hours) if spent.gpu_hours else None),
            ("Energy", f"at most {figure(energy)} kWh: {_power(machine, host)} for the whole time" if energy else None),
            ("CO2e", f"at most {figure(spent.co2e_kg)} kg, at {grid}" if energy else None),
        ]
    )


def _power(machine: MachineType, host: Mapping[str, Any]) -> str:
    """Nobody measured it: a GPU's power comes from its data sheet, that of a machine without GPUs is assumed."""
    own = host.get("board_power_w")
    watts = number(own or machine.board_power_w)
    if machine.gpu is None:
        return f"{watts} W" if own else f"an assumed {watts} W"
    return f"{number(machine.gpus)} x {watts} W, " + ("as stated for the host," if own else "the GPU's limit,")


@dataclass(frozen=True)
class Loss:
    """A row of the results, in nats per token."""

    name: str
    loss: float
    dataset: str
    anchor: float | None = None
    """GPT-2's loss, where the slice is the reference slice."""
    validation: bool = True

    @property
    def shown(self) -> str:
        return formats.loss(self.loss)


def losses(meta: CheckpointMeta, evaluations: Sequence[EvaluationRow], recipe: RecipeTables) -> list[Loss]:
    """Measured losses of this checkpoint."""
    dataset = source_name(recipe) or "tokens"
    found = []
    if meta.loss is not None:
        found.append(Loss("Training batch", meta.loss, dataset, validation=False))
    if meta.val_loss is not None:
        chosen = (recipe.get("data") or {}).get("validation") or {}
        anchor = _anchor([chosen.get("start_token"), chosen.get("tokens")], meta, recipe)
        found.append(Loss(_validation_name(recipe), meta.val_loss, dataset, anchor))
    for row in evaluations:
        if row.kind == SLICE and row.step == meta.step and row.loss is not None:
            found.append(_slice_loss(row, row.loss, dataset, meta, recipe))
    return found


def _slice_loss(row: EvaluationRow, loss: float, dataset: str, meta: CheckpointMeta, recipe: RecipeTables) -> Loss:
    """Other data than the run's own are named `FILE:START+TOKENS`, and have no anchor."""
    chosen = row.result.get("slice")
    start, length = chosen if isinstance(chosen, list) else (0, 0)
    file, _, _ = row.name.rpartition(":")
    name = f"tokens {number(start)} to {number(start + length)}"
    if file:
        return Loss(f"{file}, {name}", loss, file)
    return Loss(name.capitalize(), loss, dataset, _anchor([start, length], meta, recipe))


def _validation_name(recipe: RecipeTables) -> str:
    chosen = (recipe.get("data") or {}).get("validation") or {}
    return f"Validation, {number(chosen['tokens'])} tokens" if chosen.get("tokens") else "Validation"


def _anchor(chosen: Sequence[int | None], meta: CheckpointMeta, recipe: RecipeTables) -> float | None:
    same = (
        list(chosen) == REFERENCE_SLICE
        and str((recipe.get("data") or {}).get("source")).rstrip("/") == REFERENCE_SOURCE
        and meta.model.context_length == REFERENCE_CONTEXT
        and meta.tokenizer == "gpt2"
    )
    return ANCHOR_LOSS if same else None


def choices(meta: CheckpointMeta, evaluations: Sequence[EvaluationRow]) -> list[list[str]]:
    """Multiple choice of this checkpoint: name, questions, accuracy, by length, chance."""
    columns = ("questions", "accuracy", "accuracy_norm", "chance")
    return [
        [text(row.name), *(_cell(row.result.get(column)) for column in columns)]
        for row in evaluations
        if row.kind == CHOICES and row.step == meta.step
    ]


def judged(meta: CheckpointMeta, evaluations: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """A judge's scores of this checkpoint."""
    return [row for row in evaluations if row.kind == JUDGE and row.step == meta.step]


def judged_cells(rows: Sequence[EvaluationRow]) -> list[list[str]]:
    """Test, judge, mean, standard deviation of the answers, how many were scored."""
    return [[text(row.result[key]) for key in ("test", "judge")] + _scores(scores_of(row.result)) for row in rows]


def _scores(each: Judged) -> list[str]:
    return [number(each.mean, 1), number(each.deviation, 1), number(each.scored)]


def _cell(value: object) -> str:
    """A share in percent, a count as it is."""
    if isinstance(value, int):
        return number(value)
    return percent(value) if isinstance(value, float) else ""


def again(run: RunRecord, made_by: str) -> list[Row]:
    """What trained and exported it."""
    digest = PurePath(run.facts.synced.source if run.facts.synced else "").name
    return _rows(
        [
            ("Run", f"`{run.id}`"),
            ("Recipe", f"{text(run.recipe)}, sha256 `{run.recipe_digest}`" if run.recipe_digest else text(run.recipe)),
            ("Trained by", _known(run.facts.made_by or None)),
            ("Trainer's source, sha256", f"`{digest}`" if digest else None),
            ("Exported by", _known(made_by)),
        ]
    )

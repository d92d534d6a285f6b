"""The model card of an export: a README.md with the Hub's front matter, from the ledger and the mirrored files only.

Every figure was measured or is a setting of the run; what nobody measured has no line. A simulated machine has no cost,
no energy and no MFU: nobody paid for it, and no such GPU computed. It must not ask a machine, and must not know how a
table looks: tables.py does, and templates/model_card.md.j2 puts it together.

    text = model_card(Exported(run, meta, dataset, evaluations), report, wish)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING

from orchestrator.core.facts.run_facts import DatasetFacts
from orchestrator.core.machines import machine_type
from orchestrator.ledger.records import RecipeTables, RunRecord
from orchestrator.report import lineage
from orchestrator.report.card import provenance, tables
from orchestrator.report.card.checkpoint_meta import CheckpointMeta
from orchestrator.report.data_source import source_name
from orchestrator.report.evaluations import EvaluationRow
from orchestrator.report.pages.markdown import fenced, text
from orchestrator.report.pages.templates import templates
from orchestrator.report.run_report import RunReport
from trainer.arithmetic import parameter_count
from trainer.config.task_config import CLASSIFY, INSTRUCT, TaskConfig
from trainer.contract import ModelConfig
from trainer.prompt_template import prompt_of

if TYPE_CHECKING:
    from jinja2 import Environment

HUB = "hf://"
MOST_SAMPLES = 4


@dataclass(frozen=True)
class Exported:
    """The checkpoint to export and what is known about it."""

    run: RunRecord
    meta: CheckpointMeta
    dataset: DatasetFacts = field(default_factory=DatasetFacts)
    """What sync recorded about the data."""
    evaluations: Sequence[EvaluationRow] = ()
    ancestors: Sequence[RunRecord] = ()
    """The runs and imports before it, oldest first."""


@dataclass(frozen=True)
class Wish:
    """What the user chose for the card."""

    format: str = "hf"
    license: str | None = None
    language: str | None = None
    repo: str | None = None
    """On the Hub, OWNER/NAME, for the lines that load it; None: the folder itself."""
    chart: str | None = None
    """File name of the loss chart beside the card."""
    made_by: str = ""
    """`gptctl 0.1.0 (commit ...)`."""
    author: str | None = None
    links: Sequence[str] = ()
    """`TITLE=URL`."""
    region: str | None = None
    """Where its machine stood, as its provider names it."""


def model_card(exported: Exported, report: RunReport, wish: Wish) -> str:
    """The whole README.md."""
    return _templates().get_template("model_card.md.j2").render(_page(exported, report, wish)).rstrip() + "\n"


@cache
def _templates() -> Environment:
    """Markdown and YAML: `text`, `fenced` and `quoted` make foreign words harmless."""
    words = {"text": text, "fenced": fenced, "quoted": quoted, "literal": literal}
    return templates({**words, "table": table, "judged": tables.judged_cells}, autoescape=False)


def literal(value: str) -> str:
    """A string as Python and a shell take it in double quotes, line breaks as `\\n`."""
    return json.dumps("".join(char for char in value if char.isprintable() or char == "\n"), ensure_ascii=False)


def quoted(value: object) -> str:
    """A YAML scalar: a JSON string is a double-quoted one. Removes characters that cannot be printed."""
    if isinstance(value, str):
        value = "".join(char for char in value if char.isprintable())
    return json.dumps(value, ensure_ascii=False)


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "")) -> str:
    """Lines of a Markdown table, from formatted cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _page(exported: Exported, report: RunReport, wish: Wish) -> dict[str, object]:
    run, meta = exported.run, exported.meta
    machine = machine_type(run.machine)
    simulated, imported = machine.runs_as is not None, provenance.is_import(run)
    losses = tables.losses(exported.meta, exported.evaluations, run.recipe_data)
    return {
        "run": {"id": run.id, "recipe": run.recipe, "description": run.recipe_data.get("description", "")},
        "wish": wish,
        "native": wish.format == "hf",
        "adapters": wish.format == "adapters",
        "classifier": meta.task == CLASSIFY,
        "gguf": wish.format == "gguf",
        "untied": not meta.model.tie_embeddings,
        "license": wish.license,
        "tags": _tags(run, simulated),
        "datasets": _datasets(run.recipe_data),
        "losses": losses,
        "simulated": {"machine": run.machine, "as": machine.runs_as} if simulated else None,
        "zero_biases": _zero_biases(meta.model),
        "model": tables.model(meta),
        "data": [] if imported else tables.data(run.recipe_data, exported.dataset, meta, report.lineage),
        "training": [] if imported else tables.training(run, meta, report, machine),
        "cost": [] if simulated or imported else tables.cost(report, machine, run.host_data),
        "choices": tables.choices(meta, exported.evaluations),
        "judged": tables.judged(meta, exported.evaluations),
        "samples": [each.text for each in report.samples if each.step == meta.step][:MOST_SAMPLES],
        "pipeline": "text-classification" if meta.task == CLASSIFY else "text-generation",
        "instruct": meta.task == INSTRUCT,
        "accuracy": meta.accuracy,
        "labels": (run.recipe_data.get("task") or {}).get("labels") or (),
        "prompt": _prompt(run.recipe_data, meta.task),
        "context_length": meta.model.context_length,
        "again": tables.again(run, wish.made_by),
        "resumed": run.facts.resume_from is not None,
        "chain": lineage.commands([*exported.ancestors, run], lambda each: recipe_file(each, run)),
        "origin": report.lineage.words,
        "imported": provenance.is_import(run),
        "base_model": provenance.base_model(run),
        "carbon": provenance.carbon(run, report, wish.region),
        "made_on": provenance.day(run),
        "citation": provenance.citation(run, wish.author, _url(wish)) if wish.author else None,
        "links": provenance.links(wish.links),
        "sampling": provenance.sampling(run.recipe_data),
        "source": source_name(run.recipe_data),
        "tokens": meta.tokens,
    }


def _prompt(recipe: RecipeTables, task: str) -> str:
    """The text that the example of loading it continues; of instruct with the words it was tuned with around it."""
    known = next(iter((recipe.get("eval") or {}).get("prompts") or ()), None)
    if task != INSTRUCT:
        return known or "Every effort moves you"
    template = (recipe.get("task") or {}).get("prompt") or TaskConfig.prompt
    return prompt_of(template, known or "Name three colours.", "")


def recipe_file(run: RunRecord, exported: RunRecord) -> str:
    """The file beside the card that has a run's recipe; those of ancestors carry their id."""
    return "recipe.toml" if run.id == exported.id else f"recipe-{run.id}.toml"


def _url(wish: Wish) -> str | None:
    return f"https://huggingface.co/{wish.repo}" if wish.repo else None


def _tags(run: RunRecord, simulated: bool) -> list[str]:
    scratch = ["pretrained-from-scratch"] if run.facts.origin is None else []
    return ["gpt2", "gptctl", *scratch, *(["simulated-machine"] if simulated else [])]


def _datasets(recipe: RecipeTables) -> list[str]:
    """Ids of the Hub datasets that it was trained on."""
    data = recipe.get("data") or {}
    prepare = data.get("prepare") or {}
    sources = (data.get("source"), prepare.get("source"), *(each.get("source") for each in prepare.get("mix") or ()))
    found = (str(source).removeprefix(HUB).removeprefix("datasets/") for source in sources if _on_hub(source))
    return ["/".join(name.partition("@")[0].split("/")[:2]) for name in found]


def _on_hub(source: object) -> bool:
    return isinstance(source, str) and source.startswith(HUB)


def _zero_biases(model: ModelConfig) -> int:
    """How many values GPT-2's class has for biases that this model does not have."""
    full = replace(model, bias=True, qkv_bias=True, attention_out_bias=None)
    return parameter_count(full) - parameter_count(model)

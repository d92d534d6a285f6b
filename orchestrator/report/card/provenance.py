"""What a model card says besides figures of the run: where the model comes from, its carbon block, who made it, when,
how to cite it, and its results in the form of the Hub's `.eval_results` files. Pure.

    carbon(run, report, "us-east-1") -> {"emissions": 412.0, "source": ..., "training_type": "pre-training", ...}
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence

from orchestrator.core.machines import machine_type
from orchestrator.ledger.records import RecipeTables, RunRecord
from orchestrator.report.evaluations import CHOICES, EvaluationRow
from orchestrator.report.run_report import RunReport
from trainer.config.task_config import SamplingConfig

EVAL_RESULTS = ".eval_results"
BENCHMARKS = {"hellaswag": "Rowan/hellaswag"}
"""Names of question files -> datasets of the Hub that they come from."""
PRE_TRAINING, FINE_TUNING = "pre-training", "fine-tuning"


def is_import(run: RunRecord) -> bool:
    """Whether another program trained it."""
    return run.facts.origin is not None and run.facts.origin.imported


def carbon(run: RunRecord, report: RunReport, region: str | None) -> dict[str, object]:
    """The Hub's co2_eq_emissions block, emissions in grams; empty for an import and a simulated machine."""
    machine = machine_type(run.machine)
    if is_import(run) or machine.runs_as is not None or not report.cost.co2e_kg:
        return {}
    gpu = f"{machine.count} x {machine.gpu.name}" if machine.gpu is not None else run.machine
    found: dict[str, object] = {
        "emissions": float(f"{report.cost.co2e_kg * 1000:.4g}"),
        "source": "gptctl: hours of this run x the board power's limit x the grid's carbon intensity, an upper bound",
        "training_type": PRE_TRAINING if run.facts.origin is None else FINE_TUNING,
        "hardware_used": gpu,
    }
    return {**found, **({"geographical_location": region} if region else {})}


def day(run: RunRecord) -> str:
    """When it was made, `2026-11-30`."""
    return time.strftime("%Y-%m-%d", time.gmtime(run.ended_at or run.created_at))


def citation(run: RunRecord, author: str, url: str | None) -> str:
    """A BibTeX entry."""
    key = re.sub(r"[^a-z0-9]+", "", run.recipe.lower()) or "model"
    made = day(run)
    fields = {"author": author, "title": f"{run.recipe}, step {run.step:,}, run {run.id}", "year": made[:4]}
    fields |= {"howpublished": rf"\url{{{url}}}"} if url else {}
    fields |= {"note": "Trained with gptctl"} if not is_import(run) else {"note": "Imported by gptctl"}
    lines = [f"  {name} = {{{_plain(value)}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{{key}{made[:4]},", *lines, "}"])


def _plain(value: str) -> str:
    return "".join(char for char in value if char.isprintable())


def eval_results(step: int | None, rows: Sequence[EvaluationRow], run: RunRecord) -> dict[str, str]:
    """Files of the Hub's `.eval_results` folder by name, for what was measured on a dataset that the Hub knows. JSON is
    YAML."""
    files = {}
    for row in rows:
        dataset = BENCHMARKS.get(row.name.partition(".")[0].lower())
        accuracy = row.result.get("accuracy_norm")
        if row.kind == CHOICES and row.step == step and dataset and isinstance(accuracy, float):
            name = row.name.partition(".")[0].lower()
            entry = {
                "dataset": {"id": dataset, "task_id": name},
                "value": round(100 * accuracy, 4),
                "date": day(run),
                "notes": f"zero-shot accuracy by length on {row.result.get('questions')} questions, measured by gptctl",
            }
            files[f"{EVAL_RESULTS}/{name}.yaml"] = json.dumps([entry], indent=2) + "\n"
    return files


def links(given: Sequence[str]) -> list[tuple[str, str]]:
    """(title, address) of each `TITLE=URL`."""
    return [(title, url) for title, _, url in (each.partition("=") for each in given)]


def base_model(run: RunRecord) -> str | None:
    """The model of the Hub that its history begins with."""
    return run.facts.origin.base_model if run.facts.origin else None


def sampling(recipe: RecipeTables) -> str | None:
    """How the samples at the end of training were drawn; None where the recipe has no prompts."""
    asked, usual = recipe.get("eval") or {}, SamplingConfig()
    prompts = asked.get("prompts") or ()
    if not prompts:
        return None
    tokens = asked.get("sample_tokens", usual.tokens)
    k, p = asked.get("top_k", usual.top_k), asked.get("top_p", usual.top_p)
    limits = ([f"top-k {k}"] if k else []) + ([f"top-p {p:g}"] if p < 1 else [])
    after = f"each of {len(prompts)} prompts" if len(prompts) > 1 else "the prompt"
    heat = f"temperature {asked.get('temperature', usual.temperature):g}"
    return ", ".join([f"{tokens} tokens after {after}", *limits, heat])

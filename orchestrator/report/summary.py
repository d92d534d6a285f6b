"""The report of one run: report.json, report.md, report.html, cost.json and recipe.toml in the run's mirror.

Everything comes from the ledger and the mirrored files, and every figure was measured or is shown as the plan's. What
nobody measured is null in the JSON and a dash on the page. It must not ask a machine; writing it again replaces it.

    write_report(ledger.run(run_id), ledger.intervals(run_id), cost, home / "runs" / run_id, told)
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from orchestrator.core.events import Event
from orchestrator.core.money.cost import Cost
from orchestrator.core.states import Outcome
from orchestrator.core.typed_json import encode
from orchestrator.ledger.records import Evaluation, RunRecord, StageInterval
from orchestrator.remote.whole_files import landing
from orchestrator.report.evaluations import SAMPLE, table
from orchestrator.report.local_checkpoints import Checkpoint, read_checkpoints
from orchestrator.report.metrics import Training, read_training
from orchestrator.report.pages.curves import cost_chart, thinned, training_charts
from orchestrator.report.pages.markdown import render
from orchestrator.report.pages.run_page import run_page
from trainer.contract import CHECKPOINTS

REPORT_JSON = "report.json"
REPORT_PAGE = "report.md"
REPORT_HTML = "report.html"
COST = "cost.json"
RECIPE = "recipe.toml"

PARTS = {
    "boot": ("acquire",),
    "provision": ("provision",),
    "data": ("sync",),
    "train": ("launch", "follow", "away"),
    "fetch": ("fetch", "report", "release"),
}
"""Which stages make up a part of the plan."""


@dataclass(frozen=True)
class Told:
    """What else the ledger knows of a run."""

    evaluations: Sequence[Evaluation] = ()
    events: Sequence[Event] = ()


def write_report(
    run: RunRecord, intervals: Sequence[StageInterval], cost: Cost, mirror: Path, told: Told | None = None
) -> dict[str, Any]:
    """Writes the files, each one whole or not at all; returns what report.json says. Raises UserError when the disk
    here refuses."""
    training, known = read_training(mirror), told or Told()
    facts = collect(run, intervals, cost, mirror, told=known, training=training)
    _write(mirror / RECIPE, recipe_text(run.recipe_data))
    _write(mirror / COST, _json({**cost.to_json(run.id), "hours_by_stage": stage_hours(intervals)}))
    _write(mirror / REPORT_JSON, _json(facts))
    _write(mirror / REPORT_PAGE, render(facts))
    _write(mirror / REPORT_HTML, run_page(facts, run_charts(facts, training), run.recipe_data, known.events, mirror))
    return facts


def recipe_text(resolved: Mapping[str, Any]) -> str:
    """recipe.toml: a run's recipe with everything resolved."""
    return tomli_w.dumps(_without_nulls(resolved))


def run_charts(facts: Mapping[str, Any], training: Training) -> list[dict[str, Any]]:
    """All charts of a report, in their order."""
    cost = cost_chart(facts["stages"])
    return [*training_charts(training), *([cost] if cost else [])]


def collect(
    run: RunRecord,
    intervals: Sequence[StageInterval],
    cost: Cost,
    mirror: Path,
    *,
    told: Told | None = None,
    training: Training | None = None,
) -> dict[str, Any]:
    """Everything the report says, as JSON values: hours, USD, bytes and UTC epoch seconds."""
    training, known = training or read_training(mirror), told or Told()
    checkpoints = read_checkpoints(mirror / CHECKPOINTS)
    return {
        "run": _run(run),
        "machine": _machine(run),
        "environment": _environment(run, training),
        "model": {"parameters": run.plan and run.plan.parameters, **run.recipe_data.get("model", {})},
        "data": run.facts.staged and encode(run.facts.staged),
        "training": _training(run, training),
        "losses": [[point.step, point.value] for point in thinned(training.losses, 200)],
        "validations": [[point.step, point.value] for point in training.validations],
        "parts": _parts(run, intervals, cost),
        "stages": [_stage(interval) for interval in intervals],
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in checkpoints],
        "lost": _lost(run, training, checkpoints),
        "cost": cost.to_json(run.id),
        "evaluations": table(known.evaluations),
        "samples": _samples(training, known.evaluations),
        "reproduce": _reproduce(run, mirror),
    }


def _environment(run: RunRecord, training: Training) -> dict[str, Any]:
    """What the figures depend on beside the recipe, as the trainer itself said."""
    started = {key: training.started.get(key) for key in ("torch", "device", "ranks")}
    return {**started, "precision": run.recipe_data.get("train", {}).get("precision")}


def _run(run: RunRecord) -> dict[str, Any]:
    names = ("id", "name", "labels", "note", "recipe", "recipe_digest", "cause", "created_at", "started_at", "ended_at")
    description = run.recipe_data.get("description", "")
    outcome = run.outcome and run.outcome.value
    return {**{name: getattr(run, name) for name in names}, "description": description, "outcome": outcome}


def _planned(run: RunRecord) -> dict[str, Any]:
    """The plan's figures; none for a run without a plan."""
    return run.plan.to_json() if run.plan else {}


def _machine(run: RunRecord) -> dict[str, Any]:
    planned = ("ranks", "micro_batch", "accumulation", "global_batch", "price_per_hour_usd", "price_source", "guard")
    return {"host": run.host, "machine": run.machine, **{name: _planned(run).get(name) for name in planned}}


def _training(run: RunRecord, training: Training) -> dict[str, Any]:
    best = training.best_validation
    return {
        "steps": training.step,
        "planned_steps": run.total_steps,
        "tokens": training.tokens,
        "planned_tokens": run.plan and run.plan.tokens,
        "epochs": run.plan and run.plan.epochs,
        "first_loss": training.first_loss,
        "last_loss": training.last_loss,
        "last_val_loss": training.last_val_loss,
        "best_val_loss": best.value if best else None,
        "best_val_step": best.step if best else None,
        "tokens_per_second": training.tokens_per_second,
        "planned_tokens_per_second": run.plan and run.plan.tokens_per_second,
        "rate_source": run.plan and run.plan.rate_source,
        "mfu": training.mfu,
        "memory_gib": training.memory_gib,
    }


def _parts(run: RunRecord, intervals: Sequence[StageInterval], cost: Cost) -> list[dict[str, Any]]:
    """Plan against truth, part by part, the total last."""
    hours = stage_hours(intervals)
    planned_h, planned_usd = _planned(run).get("hours", {}), _planned(run).get("cost_usd", {})
    wholes = {**PARTS, "total": tuple(hours)}
    return [
        {
            "part": part,
            "planned_hours": planned_h.get(part),
            "hours": sum(hours.get(stage, 0.0) for stage in stages),
            "planned_usd": planned_usd.get(part),
            "cost_usd": sum(cost.by_stage.get(stage, 0.0) for stage in stages),
        }
        for part, stages in wholes.items()
    ]


def stage_hours(intervals: Iterable[StageInterval]) -> dict[str, float]:
    """Hours by stage, in the order of their first interval."""
    hours: dict[str, float] = {}
    for interval in intervals:
        hours[interval.stage] = hours.get(interval.stage, 0.0) + _lasted_s(interval) / 3600
    return hours


def _lasted_s(interval: StageInterval) -> float:
    return max(0.0, (interval.last_at if interval.ended_at is None else interval.ended_at) - interval.started_at)


def _stage(interval: StageInterval) -> dict[str, Any]:
    seconds = _lasted_s(interval)
    return {
        "stage": interval.stage,
        "started_at": interval.started_at,
        "seconds": seconds,
        "cost_usd": seconds / 3600 * interval.price_per_hour_usd,
    }


def _checkpoint(found: Checkpoint) -> dict[str, Any]:
    return {
        "step": found.step,
        "name": found.path.name,
        "size_bytes": found.size_bytes,
        "manifest_sha256": found.manifest_sha256,
        "verified": found.complete,
        "best": found.best,
        "latest": found.latest,
    }


def _samples(training: Training, evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """The trainer's own at the end, then what `gptctl sample` wrote since. The ledger may know both: each once."""
    written = [{"step": each.step, **each.result} for each in evaluations if each.kind == SAMPLE]
    found = [_sample(sample) for sample in (*training.samples, *written)]
    return [sample for number, sample in enumerate(found) if sample not in found[:number]]


def _sample(event: Mapping[str, Any]) -> dict[str, Any]:
    """`text` is the whole sample, the prompt at its beginning."""
    prompt, text = str(event.get("prompt") or ""), str(event.get("text") or "")
    return {"step": event.get("step"), "prompt": prompt, "text": text if text.startswith(prompt) else prompt + text}


def _lost(run: RunRecord, training: Training, checkpoints: Sequence[Checkpoint]) -> str | None:
    """What was trained and is not in a checkpoint here, in words; None when nothing is missing."""
    newest = max((found.step for found in checkpoints if found.complete), default=None)
    broken = [str(found.step) for found in checkpoints if not found.complete]
    said = []
    if training.step and newest is None:
        said.append(f"all {training.step:,} steps: no checkpoint is here")
    elif newest is not None and newest < training.step:
        said.append(f"steps {newest + 1:,} to {training.step:,}: trained after the newest checkpoint that is here")
    if broken:
        said.append(f"the checkpoints of step {', '.join(broken)}: files are missing or cut short here")
    if run.outcome is Outcome.PREEMPTED:
        said.append("the provider took the machine away")
    return "; ".join(said) or None


def _reproduce(run: RunRecord, mirror: Path) -> str:
    """The command that trains this again: the resolved recipe lies beside the report."""
    words = ["gptctl", "run", str(mirror / RECIPE), "--host", run.host]
    resumed = run.facts.resume_from
    return shlex.join(words + (["--resume-from", resumed.place] if resumed else []))


def _without_nulls(value: Any) -> Any:
    """TOML has no null: an absent key means the default, which is None in these places."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def _write(path: Path, text: str) -> None:
    with landing(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))

"""The report of one run: report.json, report.md, cost.json and recipe.toml in the run's mirror.

Everything comes from the ledger and the mirrored files, and every figure was measured or is shown as the plan's. What
nobody measured is null in the JSON and a dash on the page. It must not ask a machine; writing it again replaces it.

    write_report(ledger.run(run_id), ledger.intervals(run_id), cost, home / "runs" / run_id)
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from orchestrator.core.cost import Cost
from orchestrator.core.states import Outcome
from orchestrator.ledger.records import RunRecord, StageInterval
from orchestrator.remote.landing import landing
from orchestrator.report.checkpoints import Checkpoint, read_checkpoints
from orchestrator.report.metrics import Point, Training, read_training
from orchestrator.report.page import render
from trainer.contract import CHECKPOINTS

REPORT_JSON = "report.json"
REPORT_PAGE = "report.md"
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


def write_report(run: RunRecord, intervals: Sequence[StageInterval], cost: Cost, mirror: Path) -> None:
    """Writes the four files, each one whole or not at all. Raises UserError when the disk here refuses."""
    facts = collect(run, intervals, cost, mirror)
    _write(mirror / RECIPE, recipe_text(run))
    _write(mirror / COST, _json({**cost.to_json(run.id), "hours_by_stage": _hours(intervals)}))
    _write(mirror / REPORT_JSON, _json(facts))
    _write(mirror / REPORT_PAGE, render(facts))


def recipe_text(run: RunRecord) -> str:
    """recipe.toml: the run's recipe with everything resolved."""
    return tomli_w.dumps(_without_nulls(run.recipe_data))


def collect(run: RunRecord, intervals: Sequence[StageInterval], cost: Cost, mirror: Path) -> dict[str, Any]:
    """Everything the report says, as JSON values: hours, USD, bytes and UTC epoch seconds."""
    training = read_training(mirror)
    checkpoints = read_checkpoints(mirror / CHECKPOINTS)
    return {
        "run": _run(run),
        "machine": _machine(run),
        "model": {"parameters": run.plan.get("parameters"), **run.recipe_data.get("model", {})},
        "training": _training(run, training),
        "losses": [[point.step, point.value] for point in _thinned(training.losses, 200)],
        "validations": [[point.step, point.value] for point in training.validations],
        "parts": _parts(run, intervals, cost),
        "stages": [_stage(interval) for interval in intervals],
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in checkpoints],
        "lost": _lost(run, training, checkpoints),
        "cost": cost.to_json(run.id),
        "samples": [_sample(sample) for sample in training.samples],
        "reproduce": _reproduce(run, mirror),
    }


def _run(run: RunRecord) -> dict[str, Any]:
    names = ("id", "name", "labels", "note", "recipe", "recipe_digest", "cause", "created_at", "started_at", "ended_at")
    description = run.recipe_data.get("description", "")
    outcome = run.outcome and run.outcome.value
    return {**{name: getattr(run, name) for name in names}, "description": description, "outcome": outcome}


def _machine(run: RunRecord) -> dict[str, Any]:
    planned = ("ranks", "micro_batch", "accumulation", "global_batch", "price_per_hour_usd", "price_source", "guard")
    return {"host": run.host, "machine": run.machine, **{name: run.plan.get(name) for name in planned}}


def _training(run: RunRecord, training: Training) -> dict[str, Any]:
    best = training.best_validation
    return {
        "steps": training.step,
        "planned_steps": run.total_steps,
        "tokens": training.tokens,
        "planned_tokens": run.plan.get("tokens"),
        "epochs": run.plan.get("epochs"),
        "first_loss": training.first_loss,
        "last_loss": training.last_loss,
        "last_val_loss": training.last_val_loss,
        "best_val_loss": best.value if best else None,
        "best_val_step": best.step if best else None,
        "tokens_per_second": training.tokens_per_second,
        "planned_tokens_per_second": run.plan.get("tokens_per_second"),
        "rate_source": run.plan.get("rate_source"),
        "mfu": training.mfu,
        "memory_gib": training.memory_gib,
    }


def _parts(run: RunRecord, intervals: Sequence[StageInterval], cost: Cost) -> list[dict[str, Any]]:
    """Plan against truth, part by part, the total last."""
    hours = _hours(intervals)
    planned_h, planned_usd = run.plan.get("hours") or {}, run.plan.get("cost_usd") or {}
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


def _hours(intervals: Iterable[StageInterval]) -> dict[str, float]:
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
        said.append(f"all {training.step} steps: no checkpoint is here")
    elif newest is not None and newest < training.step:
        said.append(f"steps {newest + 1} to {training.step}: trained after the newest checkpoint that is here")
    if broken:
        said.append(f"the checkpoints of step {', '.join(broken)}: files are missing or cut short here")
    if run.outcome is Outcome.PREEMPTED:
        said.append("the provider took the machine away")
    return "; ".join(said) or None


def _reproduce(run: RunRecord, mirror: Path) -> str:
    """The command that trains this again: the resolved recipe lies beside the report."""
    words = ["gptctl", "run", str(mirror / RECIPE), "--host", run.host]
    resumed = run.options.get("resume_from")
    return shlex.join(words + (["--resume-from", str(resumed)] if resumed else []))


def _thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most about `most` points, evenly spaced, the last one always among them."""
    every = max(1, -(-len(points) // most))
    return [point for index, point in enumerate(points) if index % every == 0 or index == len(points) - 1]


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

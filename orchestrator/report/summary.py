"""The report of one run: report.json, report.md, report.html, cost.json and recipe.toml in the run's mirror.

Everything comes from the ledger and the mirrored files, and every figure is measured or marked as the plan's. What
nobody measured is null in the JSON and a dash on the page. It must not ask a machine; writing it again replaces it.

    write_report(ledger.run(run_id), ledger.intervals(run_id), cost, home / "runs" / run_id, records)
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
from orchestrator.core.foreign_text import clean
from orchestrator.core.money.cost import Cost
from orchestrator.core.states import Outcome
from orchestrator.ledger.records import Evaluation, RunRecord, StageInterval
from orchestrator.remote.whole_files import landing
from orchestrator.report import lineage
from orchestrator.report.data_source import private_places
from orchestrator.report.evaluations import SAMPLE, table
from orchestrator.report.judged import of_these
from orchestrator.report.local_checkpoints import Checkpoint, read_checkpoints
from orchestrator.report.metrics import CURVES, Training, read_training
from orchestrator.report.pages.chart import Chart
from orchestrator.report.pages.curves import cost_chart, thinned, training_charts
from orchestrator.report.pages.markdown import render
from orchestrator.report.pages.run_page import run_page
from orchestrator.report.run_report import (
    CheckpointPart,
    Environment,
    InterruptionsPart,
    MachinePart,
    PartOfPlan,
    RunPart,
    RunReport,
    Sample,
    StageTime,
    TrainingPart,
)
from trainer.run_files import CHECKPOINTS

REPORT_JSON = "report.json"
REPORT_PAGE = "report.md"
REPORT_HTML = "report.html"
COST = "cost.json"
RECIPE = "recipe.toml"

CHARTED = tuple(key for key in CURVES if key != "time")
"""The columns that a report needs."""

PARTS = {
    "boot": ("acquire",),
    "provision": ("provision",),
    "data": ("sync",),
    "train": ("launch", "follow", "away"),
    "fetch": ("fetch", "report", "release"),
}
"""Which stages make up a part of the plan."""


@dataclass(frozen=True)
class Records:
    """What the ledger holds of a run besides its row and its stages."""

    evaluations: Sequence[Evaluation] = ()
    events: Sequence[Event] = ()
    ancestors: Sequence[RunRecord] = ()
    """The runs and imports that its weights went through, oldest first."""
    interruptions: InterruptionsPart | None = None


def write_report(
    run: RunRecord, intervals: Sequence[StageInterval], cost: Cost, mirror: Path, records: Records | None = None
) -> RunReport:
    """Writes the files, each one whole or not at all, and returns what report.json says. Raises UserError when this
    computer's disk refuses."""
    training, known = read_training(mirror, CHARTED), records or Records()
    report = collect(run, intervals, cost, mirror, records=known, training=training)
    _write(mirror / RECIPE, recipe_text(run.recipe_data))
    _write(mirror / COST, _json({**cost.to_json(run.id), "hours_by_stage": stage_hours(intervals)}))
    _write(mirror / REPORT_JSON, _json(report.to_json()))
    _write(mirror / REPORT_PAGE, clean(render(report, private_places(run.recipe_data, mirror.parent.parent))))
    _write(mirror / REPORT_HTML, run_page(report, run_charts(report, training), run.recipe_data, known.events, mirror))
    return report


def recipe_text(resolved: Mapping[str, object]) -> str:
    """recipe.toml: a run's recipe with everything resolved."""
    return tomli_w.dumps(_without_nulls(resolved))


def run_charts(report: RunReport, training: Training) -> list[Chart]:
    """All charts of a report, in their order."""
    cost = cost_chart(report.stages)
    return [*training_charts(training), *([cost] if cost else [])]


def collect(
    run: RunRecord,
    intervals: Sequence[StageInterval],
    cost: Cost,
    mirror: Path,
    *,
    records: Records | None = None,
    training: Training | None = None,
) -> RunReport:
    """The report, from the ledger's records and the files in the mirror."""
    training, known = training or read_training(mirror), records or Records()
    checkpoints = read_checkpoints(mirror / CHECKPOINTS)
    return RunReport(
        run=_run(run),
        machine=_machine(run),
        environment=_environment(run, training),
        model={"parameters": run.plan and run.plan.parameters, **run.recipe_data.get("model", {})},
        data=run.facts.staged,
        dataset=run.facts.dataset,
        training=_training(run, training),
        losses=thinned(training.losses, 200),
        validations=training.validations,
        parts=_parts(run, intervals, cost),
        stages=[_stage(interval) for interval in intervals],
        checkpoints=[_checkpoint(checkpoint) for checkpoint in checkpoints],
        lost=_lost(run, training, checkpoints),
        cost=cost,
        evaluations=table(of_these(known.evaluations, checkpoints)),
        samples=_samples(training, known.evaluations),
        reproduce=_reproduce(run, mirror),
        lineage=lineage.part(run, known.ancestors, cost.cost_usd, lambda each: str(mirror.parent / each.id / RECIPE)),
        interruptions=known.interruptions,
    )


def _environment(run: RunRecord, training: Training) -> Environment:
    precision = run.recipe_data.get("train", {}).get("precision")
    started = training.started
    return Environment(
        torch=started.torch,
        device=started.device,
        ranks=started.ranks,
        precision=precision,
        compiled=started.compiled,
        attention=started.attention,
    )


def _run(run: RunRecord) -> RunPart:
    return RunPart(
        id=run.id,
        name=run.name,
        labels=run.labels,
        note=run.note,
        recipe=run.recipe,
        recipe_digest=run.recipe_digest,
        cause=run.cause,
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        description=run.recipe_data.get("description", ""),
        outcome=run.outcome and run.outcome.value,
    )


def _machine(run: RunRecord) -> MachinePart:
    plan = run.plan
    if plan is None:
        return MachinePart(host=run.host, machine=run.machine)
    return MachinePart(
        host=run.host,
        machine=run.machine,
        ranks=plan.ranks,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        global_batch=plan.global_batch,
        price_per_hour_usd=plan.price_per_hour_usd,
        price_source=plan.price_source,
        guard=plan.guard,
    )


def _training(run: RunRecord, training: Training) -> TrainingPart:
    best, plan = training.best_validation, run.plan
    return TrainingPart(
        steps=training.step,
        planned_steps=run.total_steps,
        tokens=training.tokens,
        planned_tokens=plan.tokens if plan else None,
        epochs=plan.epochs if plan else None,
        first_loss=training.first_loss,
        last_loss=training.last_loss,
        last_val_loss=training.last_val_loss,
        best_val_loss=best.value if best else None,
        best_val_step=best.step if best else None,
        accuracy=training.last_accuracy,
        tokens_per_second=training.tokens_per_second,
        planned_tokens_per_second=plan.tokens_per_second if plan else None,
        rate_source=plan.rate_source if plan else None,
        mfu=training.mfu,
        memory_gib=training.memory_gib,
    )


def _parts(run: RunRecord, intervals: Sequence[StageInterval], cost: Cost) -> list[PartOfPlan]:
    """Plan and truth, part by part, the total last."""
    hours = stage_hours(intervals)
    planned_h = vars(run.plan.hours) if run.plan else {}
    planned_usd = vars(run.plan.cost_usd) if run.plan else {}
    return [
        PartOfPlan(
            part=part,
            planned_hours=planned_h.get(part),
            hours=sum(hours.get(stage, 0.0) for stage in stages),
            planned_usd=planned_usd.get(part),
            cost_usd=sum(cost.by_stage.get(stage, 0.0) for stage in stages),
        )
        for part, stages in {**PARTS, "total": tuple(hours)}.items()
    ]


def stage_hours(intervals: Iterable[StageInterval]) -> dict[str, float]:
    """Hours by stage, in the order of their first interval."""
    hours: dict[str, float] = {}
    for interval in intervals:
        hours[interval.stage] = hours.get(interval.stage, 0.0) + _lasted_s(interval) / 3600
    return hours


def _lasted_s(interval: StageInterval) -> float:
    return max(0.0, (interval.last_at if interval.ended_at is None else interval.ended_at) - interval.started_at)


def _stage(interval: StageInterval) -> StageTime:
    seconds = _lasted_s(interval)
    return StageTime(interval.stage, interval.started_at, seconds, seconds / 3600 * interval.price_per_hour_usd)


def _checkpoint(found: Checkpoint) -> CheckpointPart:
    return CheckpointPart(
        step=found.step,
        name=found.path.name,
        size_bytes=found.size_bytes,
        manifest_sha256=found.manifest_sha256,
        verified=found.complete,
        best=found.best,
        latest=found.latest,
    )


def _samples(training: Training, evaluations: Sequence[Evaluation]) -> list[Sample]:
    """The trainer's own at the end, then what `gptctl sample` wrote since. The ledger may know both: each once."""
    written = [_sample({"step": each.step, **each.result}) for each in evaluations if each.kind == SAMPLE]
    return list(dict.fromkeys([*map(_sample, training.samples), *written]))


def _sample(event: Mapping[str, object]) -> Sample:
    prompt, text = str(event.get("prompt") or ""), str(event.get("text") or "")
    step = event.get("step")
    return Sample(step if isinstance(step, int) else None, prompt, text if text.startswith(prompt) else prompt + text)


def _lost(run: RunRecord, training: Training, checkpoints: Sequence[Checkpoint]) -> str | None:
    """What was trained but is not in a checkpoint here, in words; None if nothing is missing."""
    newest = max((found.step for found in checkpoints if found.complete), default=None)
    broken = [str(found.step) for found in checkpoints if not found.complete]
    said = []
    if training.step and newest is None:
        said.append(f"all {training.step:,} steps: no checkpoint is here")
    elif newest is not None and newest < training.step:
        said.append(f"steps {newest + 1:,} to {training.step:,}: trained after the newest checkpoint that is here")
    if broken:
        said.append(f"the checkpoints of step {', '.join(broken)}: files are missing or truncated here")
    if run.outcome is Outcome.PREEMPTED:
        said.append("the provider took the machine away")
    return "; ".join(said) or None


def _reproduce(run: RunRecord, mirror: Path) -> str:
    """The command that trains this again; the resolved recipe is beside the report."""
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

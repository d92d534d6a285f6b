"""What the commands about sweeps, comparisons and reports print with --json. Types only; units as in runs.py.

Example: `TypeAdapter(Comparison).json_schema(mode="serialization")`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from orchestrator.cli.schemas.runs import Measured, RunCost
from orchestrator.cli.sweeps.show import Row as SweepRow
from orchestrator.core.facts.run_facts import DatasetFacts, StagedFacts
from orchestrator.core.planning.sweep_plan import ArmCost
from orchestrator.report.comparison.result import Anchor, Difference, EqualTokens
from orchestrator.report.comparison.seed_noise import Deviation, Effect
from orchestrator.report.run_report import (
    CheckpointPart,
    Environment,
    InterruptionsPart,
    LineagePart,
    MachinePart,
    PartOfPlan,
    RunPart,
    Sample,
    StageTime,
    TrainingPart,
)


class SweepPlan(TypedDict):
    """`sweep plan`: `fits` counts the arms under the ceiling."""

    sweep: str
    host: str
    ceiling_usd: float | None
    cost_usd: float | None
    hours: float
    fits: int
    arms: list[ArmCost]


class SweepMachine(TypedDict):
    """A machine of a sweep and its share of the ceiling."""

    id: str
    state: str
    instance_id: str | None
    ceiling_usd: float | None


class SweepStatus(TypedDict):
    """`sweep status`, `run`, `resume`, `add`, `drop`, `stop`."""

    sweep: str
    id: str
    host: str
    baseline: str
    ceiling_usd: float | None
    spent_usd: float
    machines: list[SweepMachine]
    arms: list[SweepRow]


class Compared(TypedDict):
    """One run of a comparison: rank (null: `why` says why not), and its difference to the baseline."""

    id: str
    name: str | None
    labels: Mapping[str, str]
    recipe: str
    outcome: str | None
    why: str | None
    value: float | None
    delta: float | None
    effect: Effect | None
    verdict: str | None
    loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    loss_at_equal_tokens: float | None
    step: int
    tokens: int
    hours: float
    train_hours: float
    cost_usd: float
    tokens_per_second: float | None
    validations: Sequence[tuple[int, float]]
    machine: str
    device: str | None
    torch: str | None
    precision: str | None
    ranks: int | None
    micro_batch: int | None
    compiled: bool | None
    attention: str | None
    rank: int | None


class Metric(TypedDict):
    """What the runs are ranked by."""

    kind: str
    sha256: str | None
    name: str


class Comparison(TypedDict):
    """`compare` and `sweep compare`: best first, those without a rank last."""

    baseline: str
    metric: Metric
    seed_deviation: Deviation
    equal_tokens: EqualTokens | None
    runs: list[Compared]
    config_differences: list[Difference]
    environment_differences: list[Difference]
    published: list[Anchor]
    notes: list[str]


class Report(TypedDict):
    """`report`: report.json, with the files that were written."""

    run: RunPart
    machine: MachinePart
    environment: Environment
    model: Mapping[str, Any]
    data: StagedFacts | None
    dataset: DatasetFacts | None
    training: TrainingPart
    losses: Sequence[tuple[int, float]]
    validations: Sequence[tuple[int, float]]
    parts: list[PartOfPlan]
    stages: list[StageTime]
    checkpoints: list[CheckpointPart]
    lost: str | None
    cost: RunCost
    evaluations: list[Measured]
    samples: list[Sample]
    reproduce: str
    lineage: LineagePart
    interruptions: InterruptionsPart | None
    page: str
    charts: list[str]

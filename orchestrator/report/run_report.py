"""The report of one run as a value: what report.json holds, and what every page and the model card show.

Hours, USD, bytes and UTC epoch seconds. What nobody measured is None: null in the JSON, a dash on a page. It must not
read files.

Example::

    report = collect(run, intervals, cost, mirror)
    report.training.last_loss, report.to_json()["training"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from orchestrator.core.facts.origin import Origin, SourceTokens
from orchestrator.core.facts.run_facts import DatasetFacts, StagedFacts
from orchestrator.core.money.cost import Cost
from orchestrator.core.ports import Guard
from orchestrator.report.data_source import Places, hidden, without_folders
from orchestrator.report.evaluations import EvaluationRow


@dataclass(frozen=True)
class RunPart:
    """The run itself, from its record."""

    id: str
    name: str | None
    labels: Mapping[str, str]
    note: str | None
    recipe: str
    recipe_digest: str
    cause: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    description: str
    outcome: str | None


@dataclass(frozen=True)
class MachinePart:
    """Where it trained, and what was planned there."""

    host: str
    machine: str
    ranks: int | None = None
    micro_batch: int | None = None
    accumulation: int | None = None
    global_batch: int | None = None
    price_per_hour_usd: float | None = None
    price_source: str | None = None
    guard: Guard | None = None


@dataclass(frozen=True)
class Environment:
    """What the figures depend on besides the recipe, as the trainer reported it."""

    torch: str | None
    device: str | None
    ranks: int | None
    precision: str | None
    compiled: bool | None = None
    """Under torch.compile, as the trainer found it; None where it does not say."""
    attention: str | None = None
    """The attention kernel: flash, efficient, math or cpu."""


@dataclass(frozen=True)
class TrainingPart:
    """How far and how fast, measured beside planned."""

    steps: int
    planned_steps: int
    tokens: int
    planned_tokens: int | None
    epochs: float | None
    first_loss: float | None
    last_loss: float | None
    last_val_loss: float | None
    best_val_loss: float | None
    best_val_step: int | None
    accuracy: float | None
    """Of a classifier, at the last validation."""
    tokens_per_second: float | None
    planned_tokens_per_second: float | None
    rate_source: str | None
    mfu: float | None
    memory_gib: float | None


@dataclass(frozen=True)
class PartOfPlan:
    """One part of the plan, or `total`: planned and true."""

    part: str
    planned_hours: float | None
    hours: float
    planned_usd: float | None
    cost_usd: float


@dataclass(frozen=True)
class StageTime:
    """One stretch of time in one stage."""

    stage: str
    started_at: float
    seconds: float
    cost_usd: float


@dataclass(frozen=True)
class CheckpointPart:
    """A checkpoint in the run's folder here; `verified` means that every file is complete."""

    step: int
    name: str
    size_bytes: int
    manifest_sha256: str
    verified: bool
    best: bool
    latest: bool


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote; it begins with the prompt."""

    step: int | None
    prompt: str
    text: str


@dataclass(frozen=True)
class LineagePart:
    """Where the model comes from, and what it has seen on its way."""

    origin: Origin | None
    """None: trained from scratch."""
    words: str | None
    """The same in one sentence."""
    seen: Sequence[SourceTokens]
    """Tokens of each data source, those of the ancestors first."""
    own_tokens: int
    own_usd: float
    commands: Sequence[str]
    """What makes it again, from the first run or import on."""


@dataclass(frozen=True)
class InterruptionsPart:
    """How often the provider took a machine away, and what that cost and saved. The dollars are None where no price on
    demand is known."""

    interruptions: int
    machines: int
    lost_steps: int
    """Trained, and trained again."""
    on_demand_usd: float | None
    """What one machine on demand, which nobody takes away, would have cost."""
    saved_usd: float | None
    """That, less what the run cost: below zero where interruptions ate what the market saved."""


@dataclass(frozen=True)
class RunReport:
    """Everything that a report says."""

    run: RunPart
    machine: MachinePart
    environment: Environment
    model: Mapping[str, object]
    """Its number of parameters, and the recipe's table `model`."""
    data: StagedFacts | None
    """What went to the machine, and what vouches for it."""
    dataset: DatasetFacts | None
    """What it was trained on: tokens, documents, the sources of a mixture, and what is known of leaks."""
    training: TrainingPart
    losses: Sequence[tuple[int, float]]
    """Step and training loss, thinned."""
    validations: Sequence[tuple[int, float]]
    parts: Sequence[PartOfPlan]
    """The total last."""
    stages: Sequence[StageTime]
    checkpoints: Sequence[CheckpointPart]
    lost: str | None
    """What was trained and is not in a checkpoint here, in words."""
    cost: Cost
    evaluations: Sequence[EvaluationRow]
    samples: Sequence[Sample]
    reproduce: str
    """The command that trains this again."""
    lineage: LineagePart
    interruptions: InterruptionsPart | None = None
    """None: of a run that does not go on by itself."""

    def to_json(self) -> dict[str, object]:
        """report.json."""
        rows = [row.to_json() for row in self.evaluations]
        return {**asdict(self), "cost": self.cost.to_json(self.run.id), "evaluations": rows}


def shared(report: RunReport, places: Places) -> dict[str, object]:
    """report.json as others may read it, for the pages: without the folders of this computer."""
    lineage = replace(
        report.lineage, commands=[without_folders(each) for each in hidden(report.lineage.commands, places)]
    )
    run = replace(report.run, cause=without_folders(hidden(report.run.cause, places)))
    again = without_folders(hidden(report.reproduce, places))
    return hidden(replace(report, run=run, lineage=lineage, reproduce=again).to_json(), places)

"""A comparison as a value: what `gptctl compare --json` prints and its page shows.

Losses are nats per token, money is USD. A value that is not known, or not comparable, is None. It must not compare.

Example::

    comparison = compare(runs, baseline="quickstart-1120-k3f9qa")
    comparison.runs[0].verdict
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from orchestrator.report.comparison.seed_noise import Deviation, Effect
from orchestrator.report.judged import JudgeColumn, Judged


@dataclass(frozen=True)
class Metric:
    """What the runs are ranked by: a test slice, or without one the last validation."""

    sha256: str | None = None
    """Of the slice's tokens."""
    name: str = "final validation loss"

    @property
    def kind(self) -> str:
        return "validation" if self.sha256 is None else "slice"


@dataclass(frozen=True)
class EqualTokens:
    """The validation loss of each run, by id, after the same number of tokens."""

    tokens: int
    losses: Mapping[str, float | None]


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs: its value in each, by id."""

    key: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Anchor:
    """What others published for a compared recipe, with their code: [[published]] in it. It has no rank."""

    recipe: str
    by: str
    source: str
    machine: str | None = None
    test_loss: float | None = None
    val_loss: float | None = None
    train_loss: float | None = None
    first_loss: float | None = None
    hours: float | None = None
    cost_usd: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Environment:
    """What a run trained on."""

    machine: str
    device: str | None
    torch: str | None
    precision: str | None
    ranks: int | None
    micro_batch: int | None
    compiled: bool | None = None
    attention: str | None = None


@dataclass(frozen=True)
class ComparedRow:
    """One run: where it ranks, and its figures."""

    id: str
    name: str | None
    labels: Mapping[str, str]
    recipe: str
    outcome: str | None
    why: str | None
    """Why it has no rank; None for a run that has one."""
    value: float | None
    """What it is ranked by."""
    delta: float | None
    """Against the baseline."""
    effect: Effect | None
    """Of its recipe against the baseline's, by all seeds that are known of both, with its interval."""
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
    """Step and loss."""
    environment: Environment
    judged: Sequence[Judged] = ()
    """What judges gave the answers of its best checkpoint."""
    rank: int | None = None

    @property
    def label(self) -> str:
        """What the run is called where there is little room."""
        return self.name or self.id

    def to_json(self) -> dict[str, object]:
        """With the environment's keys beside the others, the rank last."""
        plain = asdict(self)
        environment, rank = plain.pop("environment"), plain.pop("rank")
        return {**plain, **environment, "rank": rank}


@dataclass(frozen=True)
class Comparison:
    """Runs best first; those without a rank last."""

    baseline: str
    metric: Metric
    seed_deviation: Deviation
    equal_tokens: EqualTokens | None
    runs: Sequence[ComparedRow]
    config_differences: Sequence[Difference]
    environment_differences: Sequence[Difference]
    published: Sequence[Anchor]
    judges: Sequence[JudgeColumn]
    notes: Sequence[str]

    def to_json(self) -> dict[str, object]:
        """What `gptctl compare --json` prints."""
        rows = [row.to_json() for row in self.runs]
        return {**asdict(self), "metric": {"kind": self.metric.kind, **asdict(self.metric)}, "runs": rows}

"""What the commands about sweeps, comparisons and reports print with --json. Types only; units as in runs.py.

Example: `TypeAdapter(Comparison).json_schema(mode="serialization")`
"""

from __future__ import annotations

from typing import Annotated

from typing_extensions import TypedDict

from orchestrator.cli.schemas.extended_outputs import Also
from orchestrator.cli.schemas.runs import Measured, RunCost
from orchestrator.cli.sweeps.show import Row as SweepRow
from orchestrator.core.planning.many_machines.sweep_plan import SweepPlan as SweepCost
from orchestrator.report.comparison.result import Anchor, ComparedRow, Difference, EqualTokens, Metric
from orchestrator.report.comparison.result import Environment as ComparedEnvironment
from orchestrator.report.comparison.seed_noise import Deviation
from orchestrator.report.judged import JudgeColumn
from orchestrator.report.run_report import RunReport

SweepPlan = Annotated[SweepCost, Also(sweep=str, host=str, fits=int)]
"""`sweep plan`: `fits` counts the arms under the ceiling."""


class SweepMachine(TypedDict):
    """A machine of a sweep, one that was taken away too: its share of the ceiling, and what the runs cost there."""

    id: str
    state: str
    instance_id: str | None
    ceiling_usd: float | None
    cost_usd: float


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


Compared = Annotated[ComparedRow, Also({"environment": ComparedEnvironment})]
"""One run of a comparison, what it trained on beside its figures."""


class Comparison(TypedDict):
    """`compare` and `sweep compare`: best first, those without a rank last."""

    baseline: str
    metric: Annotated[Metric, Also(kind=str)]
    seed_deviation: Deviation
    equal_tokens: EqualTokens | None
    runs: list[Compared]
    config_differences: list[Difference]
    environment_differences: list[Difference]
    published: list[Anchor]
    judges: list[JudgeColumn]
    notes: list[str]


Report = Annotated[RunReport, Also(cost=RunCost, evaluations=list[Measured], page=str, charts=list[str])]
"""`report`: report.json, with the files that were written."""

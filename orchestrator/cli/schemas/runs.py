"""What the commands about runs, plans, sweeps and money print with --json. Types only.

Times are UTC epoch seconds, durations seconds (or hours where the name says so), money USD; null: not known.

Example: `TypeAdapter(Status).json_schema(mode="serialization")`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict

from orchestrator.cli.history.history import Row as HistoryRow
from orchestrator.cli.machines.totals import Totals
from orchestrator.cli.plans.recipes import Listed
from orchestrator.cli.schemas.extended_outputs import Also
from orchestrator.core.checkpoints.store_state import StoreState
from orchestrator.core.facts.run_facts import StagedFacts
from orchestrator.core.fleet.orphans import Orphan
from orchestrator.core.money.cost import Cost as CostOfStages
from orchestrator.core.planning.plan import Plan

OPEN = ConfigDict(extra="allow")
"""For objects whose further keys depend on what they describe."""


class Guard(TypedDict):
    """What ends a forgotten machine: kind none, watcher, key-on-box or self; the rest as far as that kind says it."""

    kind: str
    armed: bool
    ends_at: float | None
    acts_at: NotRequired[float | None]
    leased_until: NotRequired[float | None]
    problem: NotRequired[str | None]
    holding: NotRequired[int]
    watcher_seen_s: NotRequired[float | None]


class Measured(TypedDict):
    """A slice, a multiple choice or a judge's scores; further keys are those of its kind."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    step: int
    kind: str
    name: str
    loss: NotRequired[float | None]
    measured_at: NotRequired[float]


class Run(TypedDict):
    """One run. `state` says where it is, `outcome` how it ended (null before), `stage` what gptctl does for it."""

    id: str
    name: str | None
    recipe: str
    host: str
    machine: str
    rental: str | None
    state: str
    outcome: str | None
    cause: str
    stage: str | None
    ahead: int | None
    job: Mapping[str, Any] | None
    step: int
    total_steps: int
    loss: float | None
    val_loss: float | None
    tokens_per_second: float | None
    mfu: float | None
    eta_s: float | None
    cost_usd: float
    less_usd: float
    more_usd: float
    price_per_hour_usd: float | None
    seen: str | None
    seen_s: float | None
    seen_via: str | None
    safe_step: int | None
    store: StoreState | None
    data: StagedFacts | None
    guard: Guard
    evaluations: list[Measured]
    labels: Mapping[str, str]
    note: str | None
    keep: bool
    age_s: float
    created_at: float
    started_at: float | None
    ended_at: float | None
    needs_resume: str
    driven_by: str | None


class Rental(TypedDict):
    """A machine held for runs."""

    id: str
    provider: str
    host: str
    instance_id: str | None
    instance_ids: list[str]
    machine: str
    price_per_hour_usd: float
    cost_usd: float
    less_usd: float
    more_usd: float
    runs: list[str]
    state: str


class Ending(TypedDict):
    """`run`, `resume`, `stop`, `release`: the run as it is now, and its machine."""

    runs: list[Run]
    rentals: list[Rental]


class Status(Ending):
    """`status`: runs, newest first; `left_over` are machines that are alive and that nothing needs (exit code 7)."""

    totals: Totals
    left_over: list[Orphan]
    hidden: NotRequired[int]


RunCost = Annotated[CostOfStages, Also(id=str)]
"""What one run cost."""


class Cost(TypedDict):
    """`cost`: newest run first."""

    runs: list[RunCost]
    totals: Totals
    left_over: list[Orphan]


class InvoiceLine(TypedDict):
    """A rental in our books, on the invoice, or both."""

    rental: str | None
    instance_id: str
    runs: list[str]
    invoice_usd: float | None
    ours_usd: float | None
    less_usd: float
    more_usd: float
    difference_usd: float
    agrees: bool


class Reconciled(TypedDict):
    """`cost --reconcile`."""

    lines: list[InvoiceLine]
    ours_usd: float
    invoice_usd: float
    other_usd: float
    differing: int


Planned = Annotated[Plan, Also(digest=str)]
"""One recipe on one machine; `digest` changes with anything that you agreed to."""


class Plans(TypedDict):
    """`plan`: cheapest first, those that do not fit last; `published`: what others measured for this recipe."""

    plans: list[Planned]
    published: list[Mapping[str, Any]]


class Recipes(TypedDict):
    """`recipes`."""

    recipes: list[Listed]


class Fetched(TypedDict):
    """A checkpoint whose every byte was compared with its manifest."""

    step: int
    path: str
    size_bytes: int
    verified: bool


class Fetch(TypedDict):
    """`fetch`."""

    run: str
    to: str
    checkpoints: list[Fetched]
    cost: RunCost


class History(TypedDict):
    """`runs` and `runs list`: every run, newest first; `disk_bytes`: what each part of GPTCTL_HOME takes."""

    runs: list[HistoryRow]
    disk_bytes: Mapping[str, int]


class Freed(TypedDict):
    """`runs forget` and `runs prune`."""

    runs: list[str]
    freed_bytes: int


class Waiting(TypedDict):
    """A run on a machine: `place` counts those that wait from 1; null: it trains."""

    place: int | None
    run: str
    arm: str | None
    sweep: str | None
    needs_s: float | None
    waits_s: float | None
    state: str


class Queue(TypedDict):
    """`queue`."""

    host: str
    rental: str | None
    queue: list[Waiting]

"""The plan: recipe x machine x offer as steps, hours and dollars. What `plan` prints is what `run` executes.

A value: planner.py works it out, limits.py compares it with what was agreed to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.core.errors import UserError
from orchestrator.core.estimate import Estimate
from orchestrator.core.ports import Guard
from orchestrator.core.typed_json import WrongJson, decode


@dataclass(frozen=True)
class Hours:
    """Hours of each part of a run, and their sum."""

    boot: float
    provision: float
    data: float
    train: float
    fetch: float
    total: float

    @staticmethod
    def of(
        *, boot: float = 0.0, provision: float = 0.0, data: float = 0.0, train: float = 0.0, fetch: float = 0.0
    ) -> Hours:
        """With the sum."""
        return Hours(boot, provision, data, train, fetch, sum((boot, provision, data, train, fetch)))

    def with_train(self, train: float) -> Hours:
        """The same, with another time of training."""
        return Hours.of(boot=self.boot, provision=self.provision, data=self.data, train=train, fetch=self.fetch)


@dataclass(frozen=True)
class CostUsd:
    """Dollars of each part of a run, their sum, and how much less or more it may be; None where no price is known."""

    boot: float | None = None
    provision: float | None = None
    data: float | None = None
    train: float | None = None
    fetch: float | None = None
    total: float | None = None
    less_usd: float | None = None
    more_usd: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The sum with its range."""
        return None if self.total is None else Estimate(self.total, self.less_usd or 0.0, self.more_usd or 0.0)


@dataclass(frozen=True)
class PlanLimits:
    """The tightest limits that apply; see Limits in core/config/recipe.py. None: no such limit."""

    max_cost_usd: float | None = None
    max_hours: float | None = None
    max_price_per_hour_usd: float | None = None
    hold_h: float | None = None


@dataclass(frozen=True)
class PlanData:
    """What goes to the machine. The figures are None where `unknown` says why."""

    source: str | None
    way: str
    """pulled, sent or in place."""
    needed_bytes: int | None = None
    pulled_bytes: int | None = None
    dataset_bytes: int | None = None
    verified_by: str | None = None
    unknown: str | None = None
    overlap: str | None = None
    """What it was checked against for shared documents, and what came out; None: it was not checked."""


@dataclass(frozen=True)
class PlanInstall:
    """The environment that gptctl builds on a machine without one: torch and what it needs. Which of several builds is
    the driver's to say: the smallest and the largest download, and how long the largest takes."""

    torch: tuple[str, ...]
    least_bytes: int
    most_bytes: int
    seconds: float


@dataclass(frozen=True)
class PlanFetch:
    """What is brought here at the end, while the machine is billed, and how fast."""

    size_bytes: int
    mb_per_s: float
    is_measured: bool
    """By the newest fetch from that region; else assumed."""
    region: str = ""


@dataclass(frozen=True)
class PlanMemory:
    """Main memory that the trainer needs, beside the cards: of each of its processes, and for checkpoints, which are
    copied there before they are written. Token files are mapped: the system lends memory for them and takes it back."""

    process_bytes: int
    checkpoint_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Plan:
    """One recipe on one machine. Tokens per second, hours and dollars are estimates; `rate_source` says whose."""

    recipe: str
    host: str | None
    machine: str
    ranks: int
    micro_batch: int
    accumulation: int
    global_batch: int
    steps: int
    tokens: int
    epochs: float | None
    """None when the length of the data is unknown."""
    parameters: int
    tokens_per_second: float
    rate_source: str
    uncertainty: float
    """The rate is expected within +- this fraction."""
    fits: bool
    why: str
    """Why it does not fit; empty when it does."""
    hours: Hours
    cost_usd: CostUsd
    price_per_hour_usd: float | None
    price_source: str
    guard: Guard
    ending: str
    """What happens at the end with the laptop away, in one line."""
    paid: bool
    limits: PlanLimits
    ceiling_usd: float | None
    """What the run may cost at most; None on a machine without a bill."""
    warnings: tuple[str, ...] = ()
    data: PlanData | None = None
    """None where the source was not read."""
    from_step: int = 0
    """The step of the checkpoint to resume from. `steps`, `tokens` and `epochs` are the recipe's whole; hours, dollars
    and limits are of what is left."""
    install: PlanInstall | None = None
    """None where `python` of the host says which interpreter trains."""
    memory: PlanMemory | None = None
    """None in a plan of an earlier version."""
    fetch: PlanFetch | None = None
    """None where the machine is not billed meanwhile, or stores its checkpoints by itself."""
    tokens_before: int | None = None
    """Tokens of the steps before from_step; None where every step has as many."""

    @property
    def steps_left(self) -> int:
        """The steps that this run trains."""
        return self.steps - self.from_step

    @property
    def tokens_left(self) -> int:
        """The tokens that this run trains on."""
        if self.tokens_before is not None:
            return self.tokens - self.tokens_before
        return self.tokens * self.steps_left // self.steps

    @property
    def digest(self) -> str:
        """sha256 over all of it, hex."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """JSON-able, with the digest."""
        return {**dataclasses.asdict(self), "warnings": list(self.warnings), "digest": self.digest}

    @staticmethod
    def from_json(value: Mapping[str, object]) -> Plan:
        """The plan to_json() came from; keys of a later version are ignored. Raises UserError for anything else."""
        try:
            return decode(Plan, value)
        except WrongJson as error:
            raise UserError(f"stored plan: {error}", "start a new run") from error

"""What a run has cost: dollars by stage, per billion tokens, GPU hours, energy, carbon. Pure arithmetic on intervals.

Example: `run_cost(ledger.intervals(run), machine=machine, tokens=trained).to_json("run-id")`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.machines import MachineType, assumed


class Power(Protocol):
    """What a host's entry says of energy."""

    @property
    def board_power_w(self) -> float | None: ...
    @property
    def grid_kg_co2e_per_kwh(self) -> float | None: ...


@dataclass(frozen=True)
class HostPower:
    """The same from an entry that a run keeps: without pydantic, which takes a tenth of a second."""

    board_power_w: float | None = None
    grid_kg_co2e_per_kwh: float | None = None


class Interval(Protocol):
    """A stretch of time in one stage, in UTC epoch seconds, at a price: what the ledger stores."""

    @property
    def stage(self) -> str: ...
    @property
    def started_at(self) -> float: ...
    @property
    def ended_at(self) -> float | None: ...
    @property
    def last_at(self) -> float: ...
    @property
    def price_per_hour_usd(self) -> float: ...


@dataclass(frozen=True)
class Cost:
    """Money is USD before tax. Energy is the upper bound: full board power from the first stage to the last."""

    cost_usd: float
    by_stage: Mapping[str, float]
    hours: float
    gpu_hours: float
    energy_kwh: float
    co2e_kg: float
    grid_kg_co2e_per_kwh: float
    """The carbon intensity that co2e_kg was computed with."""
    usd_per_billion_tokens: float | None
    """Of the run's own tokens, without those of the checkpoint that it began from. None before any was trained."""
    own_tokens: int = 0
    less_usd: float = 0.0
    more_usd: float = 0.0
    """How much less or more than cost_usd it may be; see core/estimate.py."""

    def to_json(self, run_id: str) -> dict[str, object]:
        """The object that `gptctl cost --json` has per run and cost.json holds."""
        return {
            "id": run_id,
            "cost_usd": self.cost_usd,
            "less_usd": self.less_usd,
            "more_usd": self.more_usd,
            "by_stage": dict(self.by_stage),
            "usd_per_billion_tokens": self.usd_per_billion_tokens,
            "own_tokens": self.own_tokens,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
            "energy_kwh": self.energy_kwh,
            "co2e_kg": self.co2e_kg,
            "grid_kg_co2e_per_kwh": self.grid_kg_co2e_per_kwh,
        }


def run_cost(intervals: Iterable[Interval], *, machine: MachineType, tokens: int, host: Power | None = None) -> Cost:
    """The cost of a run from its stage intervals; an open one counts up to when its driver was last heard of.

    tokens: trained so far. host: its board_power_w and grid_kg_co2e_per_kwh win over the data sheet's and the assumed.
    """
    by_stage: dict[str, float] = defaultdict(float)
    seconds = 0.0
    for interval in intervals:
        end = interval.last_at if interval.ended_at is None else interval.ended_at
        lasted_s = max(0.0, end - interval.started_at)
        seconds += lasted_s
        by_stage[interval.stage] += lasted_s / 3600 * interval.price_per_hour_usd
    return cost_of_stages(by_stage, seconds, machine=machine, tokens=tokens, host=host)


def cost_of_stages(
    by_stage: Mapping[str, float],
    seconds: float,
    *,
    machine: MachineType,
    tokens: int,
    host: Power | None = None,
    less_usd: float = 0.0,
    more_usd: float = 0.0,
    gpu_hours: float | None = None,
) -> Cost:
    """As run_cost, from the USD of each stage and the time of all; less_usd, more_usd: as Cost has them. gpu_hours: as
    an engine's books have them, which know better than how long the stages lasted."""
    total_usd, hours = sum(by_stage.values()), seconds / 3600
    board_w = (host.board_power_w if host else None) or machine.board_power_w
    given = host.grid_kg_co2e_per_kwh if host else None
    intensity = assumed().grid_kg_co2e_per_kwh if given is None else given
    energy_kwh = energy(hours, boards=machine.gpus or 1, board_w=board_w)
    return Cost(
        cost_usd=total_usd,
        by_stage=dict(by_stage),
        hours=hours,
        gpu_hours=hours * machine.gpus if gpu_hours is None else gpu_hours,
        energy_kwh=energy_kwh,
        co2e_kg=energy_kwh * intensity,
        grid_kg_co2e_per_kwh=intensity,
        usd_per_billion_tokens=total_usd / tokens * 1e9 if tokens else None,
        own_tokens=tokens,
        less_usd=less_usd,
        more_usd=more_usd,
    )


def energy(hours: float, *, boards: int, board_w: float) -> float:
    """Kilowatt hours: boards x watts x hours. Cooling and the rest of the machine are not in it."""
    return hours * boards * board_w / 1000


def spent(intervals: Iterable[Interval]) -> float:
    """USD of the time in stages; an open stage counts until its driver was last heard of."""
    return sum(
        (max(each.ended_at or each.last_at, each.started_at) - each.started_at) / 3600 * each.price_per_hour_usd
        for each in intervals
    )

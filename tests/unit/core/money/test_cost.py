"""The cost of a run, against a published statement of energy and carbon."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import energy, run_cost


@dataclass(frozen=True)
class Stretch:
    stage: str
    started_at: float
    ended_at: float | None
    last_at: float
    price_per_hour_usd: float


def hours(stage: str, begin: float, end: float, price: float) -> Stretch:
    return Stretch(stage, begin * 3600, end * 3600, end * 3600, price)


def test_the_published_energy_and_carbon() -> None:
    cost = run_cost([hours("follow", 0, 13, 0.0)], machine=machine_type("8x4090"), tokens=1)
    assert cost.gpu_hours == pytest.approx(104)
    assert cost.energy_kwh == pytest.approx(46.8)
    assert cost.co2e_kg == pytest.approx(13.48, abs=0.005)
    assert cost.grid_kg_co2e_per_kwh == 0.288


def test_dollars_by_stage_and_per_billion_tokens() -> None:
    intervals = [hours("acquire", 0, 0.25, 16.0), hours("follow", 0.25, 3.25, 16.0), hours("follow", 4, 5, 10.0)]
    cost = run_cost(intervals, machine=machine_type("8xA100-40GB"), tokens=2_000_000_000)
    assert cost.by_stage == {"acquire": 4.0, "follow": 58.0}
    assert cost.cost_usd == 62.0
    assert cost.usd_per_billion_tokens == pytest.approx(31.0)
    assert cost.gpu_hours == pytest.approx(8 * 4.25)


def test_an_open_interval_counts_up_to_when_its_driver_was_last_heard_of() -> None:
    cost = run_cost([Stretch("follow", 0, None, 1800, 2.0)], machine=machine_type("1x3090"), tokens=0)
    assert cost.cost_usd == pytest.approx(1.0)
    assert cost.usd_per_billion_tokens is None


def test_a_clock_that_went_backwards_costs_nothing() -> None:
    assert run_cost([Stretch("follow", 100, 50, 50, 2.0)], machine=machine_type("1x3090"), tokens=1).cost_usd == 0


def test_the_host_entry_wins_over_the_data_sheet() -> None:
    host = HostSpec(name="box", machine="1x3090", board_power_w=200, grid_kg_co2e_per_kwh=0.0)
    cost = run_cost([hours("follow", 0, 10, 0.1)], machine=machine_type("1x3090"), tokens=1, host=host)
    assert cost.energy_kwh == pytest.approx(2.0)
    assert (cost.co2e_kg, cost.grid_kg_co2e_per_kwh) == (0.0, 0.0)


def test_a_machine_without_gpu_has_energy_but_no_gpu_hours() -> None:
    cost = run_cost([hours("follow", 0, 2, 0.0)], machine=machine_type("2xCPU"), tokens=1)
    assert cost.gpu_hours == 0
    assert cost.energy_kwh == pytest.approx(energy(2, boards=1, board_w=65))


def test_nothing_happened_yet() -> None:
    cost = run_cost([], machine=machine_type("1x3090"), tokens=0)
    assert (cost.cost_usd, cost.by_stage, cost.energy_kwh) == (0, {}, 0)


def test_json_has_the_keys_scripts_rely_on() -> None:
    value = run_cost([hours("follow", 0, 1, 1.0)], machine=machine_type("1x3090"), tokens=5).to_json("run-1")
    keys = {"id", "cost_usd", "by_stage", "usd_per_billion_tokens", "gpu_hours", "energy_kwh", "co2e_kg"}
    assert json.loads(json.dumps(value)).keys() >= keys
    assert value["id"] == "run-1"

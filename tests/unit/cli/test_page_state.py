"""The live page's numbers: the month's forecast, a sweep against its baseline; and what a page that slept gets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.machines.totals import Totals
from orchestrator.cli.ui.forecast import forecast
from orchestrator.cli.ui.page_contents import PageContents
from orchestrator.cli.ui.stream import changes
from orchestrator.cli.ui.sweep_panels import MOST_POINTS, Arm, panels
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord


def row(rental: str, eta_s: float | None, *, price: float | None = 12.0, state: str = "training") -> dict[str, Any]:
    return {"state": state, "price_per_hour_usd": price, "rental": rental, "eta_s": eta_s}


@pytest.mark.parametrize(
    ("rows", "month_usd", "unknown"),
    [
        ([], 40.0, 0),
        ([row("a", 3600)], 52.0, 0),
        ([row("a", 3600), row("a", 1800)], 52.0, 0),  # one machine ends with the last of its runs
        ([row("a", 3600), row("b", None)], 52.0, 1),
        ([row("a", 3600, state="ended"), row("own", 3600, price=None)], 40.0, 0),
    ],
)
def test_the_forecast_is_what_the_month_has_cost_when_the_runs_of_now_have_ended(
    rows: list[dict[str, Any]], month_usd: float, unknown: int
) -> None:
    found = forecast(Totals(12.0, 3.0, 40.0, 100.0), rows, now=1000.0)
    assert (found.month_usd, found.unknown) == (month_usd, unknown)
    assert found.ceiling_at == 1000.0 + 5 * 3600


def test_without_a_ceiling_or_a_bill_none_is_reached() -> None:
    assert forecast(Totals(12.0, 3.0, 40.0, None), [], 0.0).ceiling_at is None
    assert forecast(Totals(0.0, 3.0, 40.0, 100.0), [], 0.0).ceiling_at is None


def arm(name: str, seed: int, *values: float, state: str = "finished") -> Arm:
    curve = [(100 * (at + 1), value) for at, value in enumerate(values)]
    return Arm(name, seed, f"{name}-{seed}", state, 100 * len(values), 300, curve)


def test_an_arm_is_judged_at_its_newest_step_against_the_mean_of_the_baseline_and_its_band() -> None:
    arms = [
        arm("base", 1, 5.0, 4.0, 3.00), arm("base", 2, 5.0, 4.0, 3.02),
        arm("better", 1, 4.0, 3.0, state="training"), arm("same", 1, 5.0, 4.0, 3.02), arm("new", 1, state="queued"),
    ]  # fmt: skip
    found = panels(arms, "base")
    said = {each["arm"]: (each["delta"], each["verdict"]) for each in found["arms"] if not each["is_baseline"]}
    assert said["better"] == (-1.0, "better") and said["new"] == (None, "")
    assert said["same"][0] == pytest.approx(0.01) and said["same"][1] == "within"
    assert "measured on 2 runs here" in found["noise"] and found["base"][-1] == (300, 3.01)


def test_without_a_second_seed_the_band_is_the_published_one_and_long_curves_are_thinned() -> None:
    long = arm("base", 1, *[5.0 - at / 1000 for at in range(1000)])
    found = panels([long], "base")
    assert "published" in found["noise"] and len(found["base"]) <= MOST_POINTS + 1
    assert found["arms"][0]["curve"][-1] == long.curve[-1]


@pytest.fixture
def sight(tmp_path: Path) -> PageContents:
    with Ledger.open(tmp_path, time.time) as ledger:
        ledger.add_run(RunRecord("live", "quickstart", "local", "2xCPU", 1.0))
    found = PageContents(tmp_path)
    found.refresh()
    return found


async def next_state(page: AsyncIterator[str]) -> int:
    async for said in page:
        if said.startswith("event: state"):
            return int(json.loads(said.partition("data: ")[2])["runs"]["live"]["step"])
    raise AssertionError("the stream ended")


def test_two_pages_get_every_change_and_one_that_slept_gets_the_newest_alone(sight: PageContents) -> None:
    async def story() -> None:
        awake, asleep = changes(sight, None, None), changes(sight, None, None)
        assert [await next_state(awake), await next_state(asleep)] == [0, 0]
        for step in range(1, 6):
            with Ledger.open(sight.home, time.time) as ledger:
                ledger.update_run("live", step=step)
            sight.refresh()
            if step in (1, 5):
                assert await next_state(awake) == step
        assert await next_state(asleep) == 5

    asyncio.run(story())

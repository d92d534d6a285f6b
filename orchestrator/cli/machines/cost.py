"""`gptctl cost`: what runs cost, from the ledger; and which machines cost on although their run is over."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from orchestrator.cli.machines.left_over import exit_code, of_ledger, rows, show
from orchestrator.cli.machines.totals import totals_of
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen.tables import Column
from orchestrator.core.formats import DASH, dollars, dollars_between, figure
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import HostPower, cost_of_stages
from orchestrator.core.typed_json import decode
from orchestrator.ledger.bills.run_estimate import run_estimate
from orchestrator.ledger.bills.spending import RunSpending
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental, RunRecord

COLUMNS = (
    Column("RUN"),
    Column("COST", right=True),
    Column("$ PER 1e9 OWN TOKENS", right=True, leaves=1),
    Column("GPU HOURS", right=True, leaves=2),
    Column("KWH", right=True, leaves=4),
    Column("KG CO2E", right=True, leaves=3),
    Column("BY STAGE", leaves=5, prose=True),
)
CENT = 0.005
"""The table omits stages below half a cent; the JSON has them."""


def cost(wanted: str | None, *, as_json: bool) -> int:
    """One row per run, newest first, and a total."""
    with open_ledger() as ledger:
        left = of_ledger(ledger)  # first: a machine that came back to life counts again
        rented = {rental.id: rental for rental in ledger.rented_since(0.0)}
        if wanted is None:
            costs = [_cost(each, rented.get(each.rental_id or "")) for each in ledger.spent_by_run()]
        else:
            costs = [cost_of(ledger, ledger.find_run(wanted))]
        totals = totals_of(ledger)
    if as_json:
        print(
            json.dumps(
                {"runs": costs, "totals": totals.to_json(), "left_over": [row.to_json() for row in rows(left)]},
                indent=1,
            )
        )
        return exit_code(left)
    from orchestrator.cli.screen import screen

    table = [_cells(each) for each in costs]
    if len(costs) > 1:
        table.append(["total", dollars(sum(each["cost_usd"] for each in costs)), "", "", "", "", ""])
    screen.show_table(COLUMNS, table)
    screen.talk("USD before tax. Energy is an upper bound: full board power all the time.")
    if totals.words:
        screen.talk(totals.words)
    return show(left)


def cost_of(ledger: Ledger, run: RunRecord) -> dict[str, Any]:
    """The `cost` object of one run, as `gptctl cost --json` has it."""
    rental = ledger.rental(run.rental_id) if run.rental_id else None
    return _cost(ledger.spent_by_run(run.id)[0], rental)


def _cost(run: RunSpending, rental: Rental | None) -> dict[str, Any]:
    estimate = run_estimate(run, rental, sum(run.by_stage.values()))
    return cost_of_stages(
        run.by_stage, run.seconds, machine=machine_type(run.machine), tokens=run.tokens_trained,
        host=_host(run.host_data), less_usd=estimate.less_usd, more_usd=estimate.more_usd, gpu_hours=run.gpu_hours,
    ).to_json(run.id)  # fmt: skip


@cache
def _host(text: str) -> HostPower:
    """Most runs share their host's entry."""
    return decode(HostPower, json.loads(text), lenient=True)


def _cells(each: dict[str, Any]) -> list[str]:
    stages = [f"{stage} {dollars(usd)}" for stage, usd in each["by_stage"].items() if usd >= CENT]
    return [
        each["id"],
        dollars_between(each["cost_usd"] - each["less_usd"], each["cost_usd"], each["cost_usd"] + each["more_usd"]),
        dollars(each["usd_per_billion_tokens"]),
        figure(each["gpu_hours"]),
        figure(each["energy_kwh"]),
        figure(each["co2e_kg"]),
        ", ".join(stages) or DASH,
    ]

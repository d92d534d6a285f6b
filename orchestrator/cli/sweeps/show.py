"""How a sweep stands: one row per arm, and the money of all. From the ledger alone."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.cli.machines.cost import cost_of
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.formats import DASH, dollars, loss
from orchestrator.core.ports import UNPAID
from orchestrator.core.states import State
from orchestrator.ledger import sweeps
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.ledger.sweeps import Sweep
from orchestrator.runs.sweep_revival import current, has_no_machine
from orchestrator.runs.sweeps import spent_by_machine

STATUS_COLUMNS = (
    Column("ARM"), Column("SEED", right=True), Column("RUN"), Column("STATE"), Column("STEP", right=True),
    Column("VAL", right=True), Column("COST", right=True), Column("WHY", leaves=1, prose=True),
)  # fmt: skip


def show(ledger: Ledger, sweep: Sweep, *, as_json: bool) -> None:
    runs = current(sweeps.runs_of(ledger.rows, sweep.id))
    rows = [_row(ledger, run) for run in runs]
    spent_on = spent_by_machine(ledger, sweep)
    rentals, spent = [ledger.rental(each) for each in spent_on], sum(spent_on.values())
    if as_json:
        machines = [
            {"id": each.id, "state": each.state, "instance_id": each.instance_id,
             "ceiling_usd": each.facts.ceiling_usd, "cost_usd": spent_on[each.id]} for each in rentals
        ]  # fmt: skip
        print(json.dumps({
            "sweep": sweep.name, "id": sweep.id, "host": sweep.host, "baseline": sweep.terms.baseline,
            "ceiling_usd": sweep.terms.ceiling_usd, "spent_usd": spent, "machines": machines,
            "arms": [vars(row) for row in rows],
        }, indent=1))  # fmt: skip
        return
    cells = [
        [
            row.arm, str(row.seed), row.run, row.state, f"{row.step}/{row.total_steps}", loss(row.val_loss),
            dollars(row.cost_usd), (row.cause or DASH)[:60],
        ]
        for row in rows
    ]  # fmt: skip
    screen.show_table(STATUS_COLUMNS, cells)
    rented = [each for each in rentals if each.provider not in UNPAID]
    for each in rented if len(rented) > 1 else ():
        ceiling = f" of {dollars(each.facts.ceiling_usd)}" if each.facts.ceiling_usd is not None else ""
        screen.talk(f"machine {each.id} ({each.state}): {dollars(spent_on[each.id])}{ceiling}")
    ended = sum(run.state is State.ENDED for run in runs)
    held = [each.id for each in rentals if each.state == RENTAL_OPEN]
    ceiling = f" of {dollars(sweep.terms.ceiling_usd)}" if sweep.terms.ceiling_usd is not None else ""
    screen.talk(f"{sweep.name}: {ended} of {len(runs)} ended, {dollars(spent)}{ceiling}; machines held: {len(held)}")
    if ended < len(runs):
        screen.talk(f"Next: gptctl sweep resume {sweep.name}, or gptctl sweep stop {sweep.name}")
    elif lost := sum(has_no_machine(ledger, run) for run in runs):
        screen.talk(f"Next: gptctl sweep resume {sweep.name}: {lost} runs go on on another machine")
    elif len(runs) > 1:
        screen.talk(f"Next: gptctl sweep compare {sweep.name}")


@dataclass(frozen=True)
class Row:
    """One run of a sweep, for people and for `--json`."""

    arm: str
    seed: int
    run: str
    rental: str | None
    state: str
    step: int
    total_steps: int
    val_loss: float | None
    cost_usd: float
    cause: str


def _row(ledger: Ledger, run: RunRecord) -> Row:
    queue = run.facts.queue
    waits = queue is not None and queue.ahead is not None and run.state is not State.ENDED
    state = run.outcome.value if run.outcome else "queued" if waits else run.state.value
    return Row(
        run.labels.get("arm", run.recipe), int(run.labels.get("seed", 0)), run.id, run.rental_id, state, run.step,
        run.total_steps, run.val_loss, cost_of(ledger, run)["cost_usd"], run.cause,
    )  # fmt: skip

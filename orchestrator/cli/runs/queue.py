"""`gptctl queue`: what waits on a machine, in which order; and whether a new run has to wait for its turn.

The machine holds the queue. The ledger here says which of your runs train where; other computers may add to it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.agent.contract.answers import MachineStatus, QueueAnswer, QueueEntry
from orchestrator.agent.contract.names import State as JobState
from orchestrator.cli.connections import agent_of
from orchestrator.cli.open_ledger import open_ledger
from orchestrator.cli.screen import screen
from orchestrator.cli.screen.tables import Column
from orchestrator.core.errors import UserError
from orchestrator.core.events import Listener
from orchestrator.core.facts.run_facts import QueueFacts
from orchestrator.core.formats import DASH, duration, hours
from orchestrator.core.states import State
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, RunRecord
from orchestrator.runs.stop import stop_run

COLUMNS = (
    Column("#", right=True),
    Column("RUN"),
    Column("ARM", leaves=1),
    Column("NEEDS", right=True, leaves=2),
    Column("WAITED", right=True),
)


@dataclass(frozen=True)
class Edit:
    """What is to change in the order before it is shown."""

    move: str | None = None
    to: int = 1
    drop: str | None = None


def queue(target: str | None, edit: Edit, *, as_json: bool) -> int:
    """Lists what trains and what waits on a machine, after moving or dropping a run."""
    with open_ledger() as ledger:
        run = _run_of(ledger, target or edit.move or edit.drop)
        dropped = _known(ledger, edit.drop)
        if dropped is not None and dropped.state is not State.ENDED:
            with screen.show_events(f"dropping {dropped.id}") as tell:
                _drop(ledger, dropped, tell)
        with agent_of(ledger, run) as agent:
            moved = _known(ledger, edit.move)
            answer = agent.queue(
                move=moved.id if moved else edit.move, to=edit.to, drop=edit.drop if dropped is None else None
            )
            found = _rows(agent.status(), answer, time.time())
        if as_json:
            print(json.dumps({"host": run.host, "rental": run.rental_id, "queue": found}, indent=1))
            return 0
        cells = [
            [str(row["place"] or ""), str(row["run"]), str(row["arm"] or DASH), *times(row)] for row in found
        ]  # fmt: skip
        screen.show_table(COLUMNS, cells)
        screen.talk(summary(run.host, sum(bool(row["place"]) for row in found)))
        return 0


def _drop(ledger: Ledger, run: RunRecord, tell: Listener) -> None:
    if run.step:
        raise UserError(f"{run.id} trains (step {run.step}) and cannot be dropped", f"gptctl stop {run.id}")
    stop_run(ledger.home, run.id, tell)


def _known(ledger: Ledger, wanted: str | None) -> RunRecord | None:
    """A run of this ledger; another computer's is named by its whole id, and only the machine knows it."""
    try:
        return ledger.find_run(wanted) if wanted is not None else None
    except UserError:
        return None


def _run_of(ledger: Ledger, target: str | None) -> RunRecord:
    """A run on the machine that is meant: by rental, by host, by a run; by default the newest unfinished one."""
    unfinished = ledger.runs(unfinished_only=True)
    reached = [run for run in unfinished if run.rental_id and ledger.rental(run.rental_id).facts.reached]
    named = [run for run in reached if target in (None, run.rental_id, run.host)]
    if named:
        return named[0]
    held = [each for each in ledger.rentals(open_only=True) if target in (each.id, each.host) and each.facts.reached]
    if held:
        return ledger.runs(rental_id=held[0].id, limit=1)[0]
    if target is None:
        raise UserError("no machine of an unfinished run", "gptctl queue HOST, or gptctl status")
    return ledger.find_run(target)


def _rows(status: MachineStatus, answer: QueueAnswer, now: float) -> list[dict[str, object]]:
    """What trains, then what waits; `place` counts the waiting ones from 1."""
    training: list[dict[str, object]] = [
        {"place": None, "run": run, "arm": None, "sweep": None, "needs_s": None, "waits_s": None, "state": "training"}
        for run, each in status["runs"].items()
        if any(job["job"] == "train" and job["state"] == JobState.RUNNING for job in each["jobs"].values())
    ]
    skew_s = status["time_s"] - now
    waiting: list[dict[str, object]] = [
        {
            "place": place, "run": entry["run"], "arm": _arm(entry), "sweep": entry["group"],
            "needs_s": entry["needs_s"], "waits_s": max(0.0, now + skew_s - entry["added_at"]), "state": "queued",
        }
        for place, entry in enumerate(answer["queue"], 1)
    ]  # fmt: skip
    return training + waiting


def summary(host: str, waiting: int) -> str:
    """The line under the list."""
    if not waiting:
        return f"{host}: nothing waits"
    words = "1 run waits" if waiting == 1 else f"{waiting} runs wait"
    return f"{host}: {words}; the machine starts what waits by itself"


def _arm(entry: QueueEntry) -> str | None:
    """Of a sweep. The machine takes a run of no sweep for an arm of its own."""
    return None if entry["arm"] == entry["run"] else entry["arm"]


def times(row: Mapping[str, object]) -> list[str]:
    """How long it will train, and how long it has waited."""
    needs, waits = row["needs_s"], row["waits_s"]
    return [
        hours(needs / 3600) if isinstance(needs, float | int) else DASH,
        duration(waits) if isinstance(waits, float | int) else "trains now",
    ]


def busy_with(ledger: Ledger, host: str, rental_id: str | None, *, paid: bool) -> RunRecord | None:
    """The run of yours that holds the machine a new run would use; None: it is free, as far as this ledger knows."""
    if paid and rental_id is None:
        return None  # it gets a machine of its own
    runs = ledger.runs(unfinished_only=True, host=host, rental_id=rental_id)
    held = [run for run in runs if run.rental_id and ledger.rental(run.rental_id).state == RENTAL_OPEN]
    return next((run for run in held if run.state in (State.PREPARING, State.TRAINING)), None)


def agreed_to_wait(
    ledger: Ledger, host: str, rental_id: str | None, *, paid: bool, asked: bool, yes: bool
) -> QueueFacts | None:
    """What a new run asks of the queue: asked for by --queue, or because its machine trains and you agree to wait."""
    if asked:
        return QueueFacts()
    busy = busy_with(ledger, host, rental_id, paid=paid)
    if busy is None:
        return None
    where = f"step {busy.step:,} of {busy.total_steps:,}" if busy.total_steps else busy.state.value
    left = f", {duration(busy.eta_s)} left" if busy.eta_s else ""
    screen.talk(f"{host} trains {busy.id} ({where}{left}): this run waits there for its turn")
    return QueueFacts() if yes or screen.ask("Queue it?", "", default=True) else None

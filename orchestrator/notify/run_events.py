"""Which events of a run are worth a notification, and their text. notify/send.py sends each once.

Example: `open_context(home, ledger, run_id, with_notifications(ledger, run_id, listener))`
"""

from __future__ import annotations

from orchestrator.core.events import Event, Listener
from orchestrator.core.formats import dollars, loss
from orchestrator.core.machines import machine_type
from orchestrator.core.money.cost import run_cost
from orchestrator.core.ports import UNPAID
from orchestrator.core.states import Outcome
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RENTAL_OPEN, Rental, RunRecord
from orchestrator.notify.send import notify

ENDINGS = {
    Outcome.FINISHED: "finished",
    Outcome.FAILED: "failed",
    Outcome.NEVER_STARTED: "failed",
    Outcome.PREEMPTED: "preempted",
    Outcome.LIMIT: "over-budget",
}
"""The notification of each outcome. A run that you stopped needs none."""
WORTH_A_LOOK = frozenset({"stage_started", "stage_finished", "stage_failed"})


def with_notifications(ledger: Ledger, run_id: str, listener: Listener) -> Listener:
    """Calls the listener, then notifies the addresses in config.toml."""

    def hear(event: Event) -> None:
        listener(event)
        if event.kind in WORTH_A_LOOK:
            run = ledger.run(run_id)
            rental = ledger.rental(run.rental_id) if run.rental_id else None
            notification = notification_of(event, run, rental, cost_usd=_spent(ledger, run))
            if notification is not None:
                notify(ledger, run_id, *notification, listener=listener)

    return hear


def notification_of(event: Event, run: RunRecord, rental: Rental | None, *, cost_usd: float) -> tuple[str, str] | None:
    """(happening, text) of an event that is worth a notification, else None."""
    paid = rental is not None and rental.provider not in UNPAID
    price = f"{dollars(rental.price_per_hour_usd)}/h" if rental and paid else "no rent"
    match event.kind, event.stage:
        case "stage_finished", "acquire" if paid:
            return "capacity", f"{run.machine} on {run.host}, {price}"
        case "stage_finished", "launch":
            steps = run.plan.steps_left if run.plan else run.total_steps
            return "started", f"{steps:,} steps of {run.recipe} on {run.host} ({run.machine}, {price})"
        case "stage_started", "fetch" if run.outcome in ENDINGS:
            return ENDINGS[run.outcome], _result(run, cost_usd)
    return _still_up(event, run, rental, price) if paid and rental and _may_bill(rental) else None


def _still_up(event: Event, run: RunRecord, rental: Rental, price: str) -> tuple[str, str] | None:
    """What happens to a paid machine whose run is over."""
    match event.kind, event.stage:
        case "stage_failed", "fetch":
            what = f"{rental.held} ({price}) holds checkpoints that are not here"
            return "held", f"{what}: {event.text}. Next: gptctl resume {run.id}"
        case "stage_finished", "release" if run.keep:
            return (
                "held",
                f"{rental.held} ({price}) is kept, as you asked. Next: gptctl release {run.id}",
            )
        case "stage_failed", "report" | "release":
            return (
                "still-billing",
                f"{rental.held} ({price}): {event.text}. Next: gptctl release {run.id}",
            )
    return None


def _may_bill(rental: Rental) -> bool:
    return rental.state == RENTAL_OPEN and bool(rental.instance_ids)


def _result(run: RunRecord, cost_usd: float) -> str:
    parts = [
        f"step {run.step:,} of {run.total_steps:,}",
        f"loss {loss(run.loss)}" if run.loss is not None else "",
        f"val loss {loss(run.val_loss)}" if run.val_loss is not None else "",
        f"{dollars(cost_usd)} so far",
        run.cause,
    ]
    return ", ".join(part for part in parts if part)


def _spent(ledger: Ledger, run: RunRecord) -> float:
    return run_cost(ledger.intervals(run.id), machine=machine_type(run.machine), tokens=0).cost_usd

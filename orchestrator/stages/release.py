"""Release: give the machine back and ask until it is gone.

An `ssh` or `local` machine is never switched off: its jobs are ended, locks and secrets freed; run folders and
environments stay. A rental goes after its last unfinished run, unless that run is kept.
"""

from __future__ import annotations

from orchestrator.core.ports import Address, Instance
from orchestrator.core.states import State
from orchestrator.stages.context import RunContext
from orchestrator.stages.report import report


def release(context: RunContext) -> None:
    """Ends this run's jobs; releases the rental unless the run is kept or another run still needs it."""
    rental = context.rental
    if rental.state == "released":
        return
    if rental.data.get("reached"):
        context.agent.release(context.run_id)
    if context.run.keep:
        context.say(
            f"{context.host.name} is kept as {rental.id} (${rental.price_per_hour_usd:.2f}/h). "
            f"Next: gptctl run RECIPE --on {rental.id}, or gptctl release {context.run_id}"
        )
    elif not _others(context):
        _give_back(context)
    report(context)


def _others(context: RunContext) -> bool:
    runs = context.ledger.runs(rental_id=context.rental.id)
    return any(run.id != context.run_id and run.state != State.ENDED for run in runs)


def _give_back(context: RunContext) -> None:
    rental = context.rental
    if rental.instance_id is not None:
        context.provider.release(
            Instance(
                rental.provider,
                rental.instance_id,
                rental.machine,
                Address(**rental.address) if rental.address else None,
                rental_id=rental.id,
            )
        )
    context.ledger.update_rental(rental.id, state="released", released_at=context.now())

"""Release: give the machine back and ask until it is gone.

A rented machine is destroyed, and only then its bill is known. An `ssh` or `local` machine is never switched off: its
jobs are ended, locks and secrets freed; run folders and environments stay. A rental goes after its last unfinished run,
unless that run is kept.
"""

from __future__ import annotations

from orchestrator.core.errors import AgentError, RemoteError, UserError
from orchestrator.core.parallel import in_turn
from orchestrator.core.states import State
from orchestrator.ledger.records import INTENT_ADOPTED, RENTAL_RELEASED
from orchestrator.stages.checkpoints import home_box_job
from orchestrator.stages.checkpoints.copies import UNWRITABLE
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import box_guard, engine_job, purchase
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.machine.give_back import give_back, tidy
from orchestrator.stages.nodes import others
from orchestrator.stages.outcome import engine_bill, run_report


def release(context: RunContext) -> None:
    """Ends this run's jobs; releases the rental unless the run is kept or another run still needs it."""
    rental = context.rental
    if rental.state == RENTAL_RELEASED:
        return
    if context.engine_of is not None:  # before it is released: killed in between, gptctl would never look again
        _end_jobs(context)
        engine_bill.settle(context)
    if context.run.keep and not context.machine_facts.life.gone_at:
        _end_jobs(context)
        for node in (context, *context.others) if context.provider.paid else (context,):
            box_guard.hold(node)
        context.say(
            f"{context.host.name} is kept as {rental.id} (${rental.price_per_hour_usd:.2f}/h). "
            f"Next: gptctl run RECIPE --on {rental.id}, or gptctl release {context.run_id}"
        )
    elif _others(context):
        _end_jobs(context)
    else:
        _give_back(context)
    run_report.write(context)


def _others(context: RunContext) -> bool:
    runs = context.ledger.runs(rental_id=context.rental.id, forgotten=True)
    return any(run.id != context.run_id and run.state != State.ENDED for run in runs)


def _end_jobs(context: RunContext) -> None:
    """Asks a machine that was reached and is not known to be gone; else an engine, which may have a job of the run."""
    there = context.machine_facts.reached and not context.machine_facts.life.gone_at
    ends = (_end_on_machine, others.release) if there else (engine_job.drop_element,)
    in_turn((*ends, home_box_job.stop), lambda end: end(context))


def _end_on_machine(context: RunContext) -> None:
    """On a cluster whose quota is full this only warns: its jobs have ended, and a login node is not given back."""
    if context.engine_of is not None:
        engine_job.stop(context)
    try:
        context.agent.release(context.run_id)
    except AgentError as error:
        if context.engine_of is None or error.code not in UNWRITABLE:
            raise
        context.emit("warning", f"{context.host.name} cannot note that the run is over: {error.message}")


def _give_back(context: RunContext) -> None:
    if context.provider.paid:
        _destroy(context)
    else:
        _end_jobs(context)
        context.provider.release(context.rental.instance)
    context.ledger.update_rental(context.rental.id, state=RENTAL_RELEASED, released_at=context.now())


def _look_for_lost(context: RunContext) -> None:
    """A launch without an answer may have bought a machine: nothing is called released before it was looked for."""
    for node in context.machines:
        if node.rental.instance_id is not None or not purchase.intents(node, open_only=True):
            continue
        try:
            found = purchase.find(node)
        except purchase.Unseen as error:
            context.say(error.message)
        else:
            if found is not None:
                purchase.hold(node, found, INTENT_ADOPTED)
                boot.note_life(node, booting_at=context.rental.created_at, active_at=context.now())


def _destroy(context: RunContext) -> None:
    """Ends the machine and its jobs with it; settles the bill once it is gone."""
    _look_for_lost(context)
    if context.run.facts.abandon:
        _end_unasked(context)
    else:
        _part(context)
        give_back(context)
    tidy(context)
    context.ledger.close_stage(context.interval)  # what comes after it is gone costs nothing
    rental = context.rental
    audited = [context.provider.ended_at(each.rental.instance) for each in context.machines if each.rental.instance_id]
    context.ledger.settle(rental.id, rental.settled_bill(context.provider.billing_unit_s, audited))


def _end_unasked(context: RunContext) -> None:
    """Ends the machine by its id and asks it nothing: with --force it need not answer."""
    context.disconnect()
    give_back(context)
    home_box_job.stop(context)


def _part(context: RunContext) -> None:
    """Ends its jobs and frees its secrets, where it still answers: memory outlives some machines."""
    try:
        in_turn(context.machines, _part_with)
    except (RemoteError, UserError) as error:  # a login key that is missing here must keep no machine alive
        context.emit("seen", f"{error.message}; destroying it anyway")
    context.disconnect()


def _part_with(node: RunContext) -> None:
    if not node.node:
        _end_jobs(node)
    if node.rental.instance_id is not None and not node.machine_facts.life.gone_at:
        box_guard.finish(node)

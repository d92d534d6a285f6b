"""A machine of ours that its provider lists no more: who ended it, what that means for the run, and what was lost.

Only the provider can say gone; a machine that is silent is neither dead nor alive.
"""

from __future__ import annotations

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.core.checkpoints.store_index import StoreIndex
from orchestrator.core.errors import BadCredentials, NoAnswer
from orchestrator.core.fleet.lease import lease_s
from orchestrator.core.ports import Instance
from orchestrator.core.states import Outcome, State, is_forward
from orchestrator.stages.checkpoints import from_store, store_job
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine import deadline
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.outcome import regroup, training_end

SLACK_S = 35.0
"""The last report of the guard may be this old, and clocks differ."""


def was_ended(context: RunContext) -> bool:
    """Whether a machine that we reached before is gone. If it answers, that ends the question; else its provider is
    asked. An API that does not answer says nothing."""
    rental = context.rental
    known = context.provider.paid and rental.instance_id is not None and rental.facts.reached is not None
    if not known or boot.answers(context):
        return False
    boot.refresh_address(context)
    return not boot.answers(context) and boot.was_preempted(context)


def to_ask_about(context: RunContext) -> tuple[RunContext, ...]:
    """The nodes whose machine's end this side has to find out: all of them, until they train. From then on the nodes
    miss each other, and this side their head alone."""
    if is_forward(State.TRAINING, context.run.state):
        return (context,)
    return tuple(node for node in context.machines if node.rental.instance_id is not None)


def settle(context: RunContext, gone: RunContext) -> None:
    """Leaves the run planned again, where it trained before and goes on without this node; else ending."""
    if context.run.state == State.TRAINING:
        goes_on = regroup.without_head(context, regroup.HEARD_WITHIN_S)
    else:
        goes_on = regroup.also(context, gone, f"{gone.rental.provider} took {gone.rental.instance_id} away")
    if not goes_on:
        conclude(gone)


def conclude(context: RunContext) -> None:
    """Leaves the run ending: by its limit if a guard ended the machine, else preempted. Says what is lost. context: of
    the node whose machine is gone."""
    what, name = context.rental.instance_id, context.rental.provider
    if context.rental.nodes > 1:
        what = f"{what} (node {context.host.name if context.node else context.host.nodes[0]})"
    index = recover(context)
    if index is not None and index.ended is not None:
        return _over(context, index.ended)
    if _ended_by_guard(context):
        outcome, cause = Outcome.LIMIT, f"its guard ended {what}: {_why(context)}"
    else:
        outcome, cause = Outcome.PREEMPTED, f"{name} took {what} away"
    found = _found(context)
    if found is not None and found.why:
        cause = f"{what} is {found.status}: {found.why}"
    if found is None or found.status in boot.GONE:  # one that is only stopped is ended by `release`
        boot.note_gone(context)
    context.ledger.set_state(context.run_id, State.ENDING, outcome=outcome, cause=cause)
    context.emit("preempted" if outcome == Outcome.PREEMPTED else "warning", f"{cause}; {lost(context)}")


def recover(context: RunContext) -> StoreIndex | None:
    """What the machine left in the store: its logs come here, and its newest checkpoint there is safe."""
    index = store_job.index(context)
    if index is not None:
        newest = index.newest()
        if newest is not None and newest.step > (context.run.safe_step or 0):
            context.ledger.update_run(context.run_id, safe_step=newest.step)
        from_store.bring_logs(context, store_job.uri(context), index.files)
    training_end.count_steps(context)
    return index


def _over(context: RunContext, exit_record: ExitRecord) -> None:
    """It ended as planned: the training is over, all that is kept is in the store, and then the machine went."""
    boot.note_gone(context)
    context.say(f"{context.rental.instance_id} is gone; everything that is kept is in {store_job.uri(context)}")
    training_end.conclude(context, exit_record)


def lost(context: RunContext) -> str:
    """What went with the machine, as far as this side knows."""
    run = context.run
    if context.attempt is None:
        return "nothing had been trained there"
    where = f"in {store_job.uri(context)}" if store_job.wanted(context) else "here"
    if run.safe_step is not None and run.safe_step >= (run.total_steps or 0) > 0:
        return f"its last checkpoint is {where} and verified"
    seen = f"the last step seen was {run.step or 0} of {run.total_steps or '?'}"
    if run.safe_step is None:
        return f"no checkpoint is {where}, all of it is lost ({seen})"
    return f"the newest checkpoint {where} is of step {run.safe_step}, what came after it is lost ({seen})"


def _ended_by_guard(context: RunContext) -> bool:
    """A guard acts at its deadline, or at the end of a lease that was not renewed. Otherwise it was not the guard."""
    guard = context.machine_facts.guard
    if guard is None or not guard.armed or _is_preempted(context):
        return False
    return _deadline_passed(context) or _passed(context, guard.leased_until)


def _why(context: RunContext) -> str:
    if _deadline_passed(context):
        return "the deadline was reached"
    return "the lease ran out because no gptctl followed, or the hours for holding checkpoints were over"


def _deadline_passed(context: RunContext) -> bool:
    guard = context.machine_facts.guard
    return guard is not None and _passed(context, guard.ends_at)


def _passed(context: RunContext, at: float | None) -> bool:
    """A lease only ever gets longer: the guard cannot have acted before the end that the machine reported last."""
    return at is not None and context.now() >= at - min(SLACK_S, lease_s() / 2)


def _is_preempted(context: RunContext) -> bool:
    """Whether the provider says so in that word."""
    found = _found(context)
    return found is not None and found.status == "preempted"


def _found(context: RunContext) -> Instance | None:
    """As its provider describes it; None where it is not listed, or the API does not answer."""
    try:
        return deadline.held(context)
    except (NoAnswer, BadCredentials):
        return None

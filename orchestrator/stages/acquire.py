"""Acquire: hold a machine that answers SSH with the pinned key. One acquire call per intent, never repeated.

Looks first: a rental that has its instance, or an intent whose answer was lost, is found among the provider's machines
before anything new is asked for.
"""

from __future__ import annotations

from dataclasses import asdict
from uuid import uuid4

from orchestrator.core.errors import GaveUp, RemoteError
from orchestrator.core.ports import Instance, LaunchRequest, Offer
from orchestrator.core.states import State
from orchestrator.ledger.records import Intent, Rental
from orchestrator.stages.context import RunContext


def acquire(context: RunContext) -> None:
    """Leaves the rental with an instance id, an address and a machine that answered."""
    context.advance(State.ACQUIRING)
    if context.rental.instance_id is None:
        instance = _found(context, context.rental) or _bought(context, context.rental)
        context.ledger.update_rental(
            context.rental.id,
            instance_id=instance.instance_id,
            address=asdict(instance.address) if instance.address else {},
        )
    _reach(context)


def _found(context: RunContext, rental: Rental) -> Instance | None:
    """A machine that an earlier, interrupted acquire of this rental already got."""
    intents = {intent.id: intent for intent in context.ledger.intents(rental.id, open_only=True)}
    for instance in context.provider.machines() if intents else ():
        if instance.rental_id == rental.id or not context.provider.paid:
            for intent in intents.values():
                context.ledger.close_intent(intent.id, "adopted", {"instance_id": instance.instance_id})
            return instance
    return None


def _bought(context: RunContext, rental: Rental) -> Instance:
    offer = Offer(rental.provider, rental.machine, rental.price_per_hour_usd, source="plan")
    request = LaunchRequest(rental.id, str(uuid4()), offer)
    context.ledger.add_intent(Intent(request.intent_id, rental.id, context.now(), request={"machine": rental.machine}))
    # No retry: a request whose answer is lost may still have bought a machine; _found() decides on the next look.
    instance = context.provider.acquire(request)
    context.ledger.close_intent(request.intent_id, "bought", {"instance_id": instance.instance_id})
    return instance


def _reach(context: RunContext) -> None:
    """First contact. A machine that never answered is given up; one that did is only out of sight."""
    context.say(f"connecting to {context.host.name}")
    try:
        context.agent.ensure()
    except RemoteError as error:
        if context.rental.data.get("reached"):
            raise
        raise GaveUp(error.message, error.hint, cause=error) from error
    if not context.rental.data.get("reached"):
        context.remember(reached=context.now())

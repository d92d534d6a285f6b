"""Purchase: from offers to a machine that is held, or several as one. One intent, one request, never repeated.

An intent is written before the request and closed after the machine is written down: killed at any point, the next
look finds the machine by its tag, or knows that none was bought. A lost answer is looked for, never asked for again.

Several machines are ordered one after another in one place, each by an intent of its own, so that at most one answer is
open. All or none: where one cannot be had, those that were bought are given back before the next place is tried."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

from orchestrator.core.errors import (
    AmbiguousLaunch,
    BadCredentials,
    LimitReached,
    NoAnswer,
    NoCapacity,
    ProviderError,
    QuotaUsedUp,
)
from orchestrator.core.machines import machine_type, of_all, of_one
from orchestrator.core.money import counted_time
from orchestrator.core.planning.many_machines.attempts import expected_usd, hazard_per_h
from orchestrator.core.planning.plan import Plan
from orchestrator.core.ports import Address, Instance, LaunchRequest, Offer
from orchestrator.ledger.records import (
    INTENT_ADOPTED,
    INTENT_BOUGHT,
    INTENT_REFUSED,
    INTENT_UNSEEN,
    Intent,
    IntentAnswer,
    IntentRequest,
)
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.bounds import await_replacement, check_replacement, hear_stop, pause
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.machine.first_contact.cloud_init import guarded
from orchestrator.stages.machine.give_back import end_others, undo

NONE_LISTED = "no region lists capacity"
ASK_AGAIN_S = 60.0
"""Between two rounds over all regions, with --wait."""
LOOK_EVERY_S = 5.0


class Unseen(ProviderError):
    """A launch whose answer was lost, and whose machine no list showed for long enough."""


def hold(context: RunContext, instance: Instance, state: str, price_per_hour_usd: float | None = None) -> None:
    """What is bought is written down at once, and only then its intent is closed: killed in between, the machine is
    held; the other way round no record would name it. The address of a cloud's machine comes later. The price is that
    of all machines of the rental."""
    known = context.machine_facts
    ordered = _ordered_at(context, instance, state)
    price = context.rental.price_per_hour_usd if price_per_hour_usd is None else price_per_hour_usd
    context.update_rental(
        instance_id=instance.instance_id,
        ends_at=instance.ends_at,
        price_per_hour_usd=price,
        address=instance.address or Address(),
        facts={
            "region": instance.region or known.region,
            "zone": instance.zone or known.zone,
            "image": instance.image or known.image,
            "life": replace(known.life, booting_at=known.life.booting_at or ordered),
            "clock": known.clock or counted_time.read(context.now()),
        },
    )
    close(context, state, instance.instance_id)


def _ordered_at(context: RunContext, instance: Instance, state: str) -> float:
    """When this machine was ordered: its bill may begin there. One that turned up may be of an earlier order, which was
    refused; only its provider, or the tag of its intent, tells."""
    at = {each.id: each.created_at for each in context.ledger.intents(context.rental.id)}
    if instance.intent_id in at:
        return at[instance.intent_id]
    if state == INTENT_BOUGHT or not at:
        return max(at.values(), default=context.now())
    return max(min(at.values()), instance.launched_at or 0.0)


def find(context: RunContext) -> Instance | None:
    """A machine that an earlier, interrupted acquire of this rental got; others of this rental are ended.

    An intent whose answer is unknown is looked for until lists have been clean long enough to close it as unseen.
    """
    open_ids = {intent.id for intent in intents(context, open_only=True)}
    if not intents(context):
        return None
    past = {*context.instance_ids, *(each.instance_id for each in context.machine_facts.given_back)}
    until = context.now() + (context.provider.settle_s if open_ids else 0.0)
    while True:
        ours = _ours(context)
        for instance in ours:
            # A list without tags: it may be the one.
            untold = bool(open_ids) and instance.intent_id is None and instance.instance_id not in past
            if instance.intent_id in open_ids or untold or not context.provider.paid:
                return instance
        end_others(context, ours)
        if context.now() >= until:
            break
        time.sleep(LOOK_EVERY_S)
    if open_ids:
        close(context, INTENT_UNSEEN)
        raise Unseen(
            f"the launch was never seen in {context.provider.settle_s / 60:.0f} min of lists; nothing seems bought",
            "gptctl orphans looks again; then run again",
        )
    return None


def _ours(context: RunContext) -> list[Instance]:
    """Living machines of this rental."""
    if not context.provider.paid:
        return list(context.provider.machines())
    return [
        found
        for found in context.provider.machines()
        if found.rental_id == context.rental.id and found.status not in ("terminating", *boot.GONE)
    ]


def close(context: RunContext, state: str, instance_id: str | None = None) -> None:
    answer = IntentAnswer(instance_id)
    for intent in intents(context, open_only=True):
        context.ledger.close_intent(intent.id, state, answer)


def intents(context: RunContext, *, open_only: bool = False) -> list[Intent]:
    """Those for this node's machine, oldest first."""
    found = context.ledger.intents(context.rental.id, open_only=open_only)
    return [each for each in found if each.request.node == context.node]


def buy_somewhere(context: RunContext) -> None:
    """Asks for each offer in turn, once; with --wait, round after round. Refusals close their intent. Buys those of its
    machines that are not held yet."""
    check_replacement(context)
    while True:
        some = context.instance_ids
        reasons: list[str] = []
        quotas: dict[tuple[str, str], QuotaUsedUp] = {}
        try:
            for offer in _candidates(context):
                if (offer.region, offer.machine) in quotas:
                    continue  # a quota holds for all zones of its region
                try:
                    return _buy_all(context, offer)
                except NoCapacity as error:
                    reasons.append(f"{offer.zone or offer.region}: {error.message}")
                    context.say(reasons[-1])
                except NoAnswer as error:
                    if not (context.facts.wait or context.facts.lost_nodes.times):
                        raise
                    reasons.append(error.message)
                    context.say(error.message)
                except QuotaUsedUp as error:
                    quotas[offer.region, offer.machine] = error
                    reasons.append(f"{offer.region}: {error.message}; {error.hint}")
                    context.say(reasons[-1])
        except LimitReached as error:
            raise LimitReached("; ".join([*reasons, error.message]), error.hint) from error
        if context.facts.lost_nodes.times:  # the others wait for it, and have what nobody else has
            await_replacement(context, "; ".join(reasons or [NONE_LISTED]), ASK_AGAIN_S)
            continue
        if some:  # no more of them beside those that were held: all of them elsewhere
            undo(context)
            continue
        if quotas and len(quotas) == len(reasons):
            raise next(iter(quotas.values()))  # waiting does not help
        if not context.facts.wait:
            why = "; ".join([*(reasons or [NONE_LISTED]), *context.provider.take_warnings()])
            raise NoCapacity(f"{context.host.name}: {why}", "add --wait to wait for capacity")
        context.say(f"{'no capacity' if reasons else NONE_LISTED}; asking again in {ASK_AGAIN_S:.0f} s")
        pause(context, ASK_AGAIN_S)


def _candidates(context: RunContext) -> Iterator[Offer]:
    """Offers of the planned machine types with capacity, by dollars per run, at no more than the price agreed to."""
    if not context.provider.paid:
        yield Offer(context.rental.provider, context.rental.machine, context.rental.price_per_hour_usd, source="plan")
        return
    plans = {plan.machine: plan for plan in (context.plan, *context.facts.alternatives)}
    fitting = [
        offer
        for offer in _offers(context)
        if offer.available and _is_agreed_market(context, offer) and _is_beside(context, offer)
    ]
    dear: Offer | None = None
    for offer in sorted(fitting, key=lambda each: _expected_usd(context, plans[each.machine], each)):
        agreed = _agreed_usd(context, plans[offer.machine], offer)
        if agreed is not None and offer.price_per_hour_usd > agreed + 1e-9:
            dear = dear or offer
        else:
            yield offer
    if dear is not None:
        agreed = _agreed_usd(context, plans[dear.machine], dear) or 0.0
        raise LimitReached(
            f"{context.host.name} costs ${dear.price_per_hour_usd:.2f}/h now, and you agreed to ${agreed:.2f}/h",
            "run the command again to see and accept the new price; gptctl offers lists prices",
        )


def _is_beside(context: RunContext, offer: Offer) -> bool:
    """Whether it is where the rental's other machines are: they meet in one network."""
    facts = context.machine_facts
    if context.rental.instance_id is None or context.rental.nodes == 1:
        return True
    return (offer.machine, offer.region, offer.zone or facts.zone) == (context.machine.name, facts.region, facts.zone)


def _is_agreed_market(context: RunContext, offer: Offer) -> bool:
    recovery = context.facts.recovery
    both = recovery is not None and not offer.spot and offer.machine in recovery.on_demand
    return offer.spot == context.host.spot or both


def _agreed_usd(context: RunContext, plan: Plan, offer: Offer) -> float | None:
    """USD per hour that you agreed to at most, on this market."""
    if offer.spot == context.host.spot or context.facts.recovery is None:
        return plan.price_per_hour_usd
    return context.facts.recovery.on_demand[offer.machine]


def _expected_usd(context: RunContext, plan: Plan, offer: Offer) -> float:
    """What the rest of the run costs there; of one that goes on by itself, with what interruptions are expected to
    repeat."""
    recovery, origin = context.facts.recovery, context.facts.resume_from
    if recovery is None:
        return offer.price_per_hour_usd * plan.hours.total
    interval_h = context.recipe.train.checkpoint_every * plan.hours.train / max(1, plan.steps_left)
    risk = hazard_per_h(recovery.interruptions, _spot_h(context)) if offer.spot else 0.0
    return expected_usd(
        plan, offer.price_per_hour_usd, from_step=origin.step if origin else 0, risk_per_h=risk, interval_h=interval_h
    )


def _spot_h(context: RunContext) -> float:
    """Hours that this run has spent on spot machines."""
    spans = context.ledger.intervals(context.run_id)
    spot = {each for each in {span.rental_id for span in spans} if each and context.ledger.rental(each).facts.spot}
    return sum((each.ended_at or each.last_at) - each.started_at for each in spans if each.rental_id in spot) / 3600


def _switch(context: RunContext, machine: str) -> None:
    """Moves the run to another of its machine types: nothing is held yet, so plan and rental follow."""
    plans = [context.plan, *context.facts.alternatives]
    plan = next(each for each in plans if each.machine == machine)
    context.say(f"{machine} instead of {context.machine.name}")
    context.machine = machine_type(machine)
    others = tuple(each for each in plans if each.machine != machine)
    # With its price: until the lists tell, what it costs counts by this, also after a crash.
    price = context.rental.price_per_hour_usd if plan.price_per_hour_usd is None else plan.price_per_hour_usd
    context.update_rental(machine=machine, price_per_hour_usd=price)
    context.ledger.update_run(
        context.run_id,
        machine=machine,
        plan=plan,
        total_steps=plan.steps,
        facts={"alternatives": others},
    )


def _offers(context: RunContext) -> list[Offer]:
    """Of the planned types, at the price of all their nodes. Asking is free: an API that does not answer is asked again
    where the user chose to wait."""
    wanted = [machine_type(plan.machine) for plan in (context.plan, *context.facts.alternatives)]
    while True:
        try:
            sold = context.provider.offers()
            return [of_all(offer, each) for offer in sold for each in wanted if each.node.name == offer.machine]
        except NoAnswer as error:
            if not context.facts.wait:
                raise
            context.emit("seen", f"{error.message}; asking again in {ASK_AGAIN_S:.0f} s")
            pause(context, ASK_AGAIN_S)


def _buy_all(context: RunContext, offer: Offer) -> None:
    """All of its machines there, or none: what was bought before one was refused is given back."""
    if {context.machine.name, context.rental.machine} != {offer.machine}:
        _switch(context, offer.machine)
    for node in [each for each in context.machines if each.rental.instance_id is None]:
        head = context.machine_facts
        try:
            _buy(node, replace(offer, region=offer.region or head.region, zone=offer.zone or head.zone))
        except BadCredentials:
            raise  # without a key nothing can be given back, either
        except ProviderError as error:
            is_first = context.instance_ids and not context.facts.lost_nodes.times
            if is_first and not context.ledger.intents(context.rental.id, open_only=True):
                which, held = f"machine {node.node + 1} of {context.rental.nodes}", ", ".join(context.instance_ids)
                context.emit("warning", f"{which}: {error.message}; all or none: {held} given back")
                undo(context)
            raise


def _buy(context: RunContext, offer: Offer) -> None:
    hear_stop(context)
    if context.facts.recovery is not None:  # before its deadline is worked out: the markets have different prices
        context.update_rental(price_per_hour_usd=offer.price_per_hour_usd, facts={"spot": offer.spot})
        context.say(f"{offer.machine} {'spot' if offer.spot else 'on demand'} at ${offer.price_per_hour_usd:.2f}/h")
    request = LaunchRequest(context.rental.id, str(uuid4()), offer)
    if context.provider.paid:
        request = guarded(context, replace(request, offer=of_one(offer), nodes=context.rental.nodes))
    context.ledger.add_intent(
        Intent(
            request.intent_id,
            context.rental.id,
            context.now(),
            request=IntentRequest(offer.region, offer.zone, offer.sku, context.node),
        )
    )
    try:
        # No retry: a request whose answer is lost may still have bought a machine; find() decides on the next look.
        instance = context.provider.acquire(request)
    except AmbiguousLaunch as error:
        context.emit("warning", f"{error.message}; looking for the machine by its tag")
        found = find(context)
        assert found is not None  # an open intent is adopted, or closed as unseen, which raises
        return hold(context, found, INTENT_ADOPTED, offer.price_per_hour_usd)
    except (NoCapacity, QuotaUsedUp) as error:
        found = _bought_all_the_same(context)
        if found is None:
            context.ledger.close_intent(request.intent_id, INTENT_REFUSED, IntentAnswer(error=error.message))
            raise
        context.emit("warning", f"{error.message}; yet {found.instance_id} was bought: taking it")
        return hold(context, found, INTENT_ADOPTED, offer.price_per_hour_usd)
    except ProviderError as error:
        # NoAnswer too: by the port's contract the order was not sent; what comes before it had no answer.
        context.ledger.close_intent(request.intent_id, INTENT_REFUSED, IntentAnswer(error=error.message))
        raise
    hold(context, instance, INTENT_BOUGHT, offer.price_per_hour_usd)


def _bought_all_the_same(context: RunContext) -> Instance | None:
    """The machine that a refused order bought, as far as one look at the lists tells."""
    past = {*context.instance_ids, *(each.instance_id for each in context.machine_facts.given_back)}
    try:
        return next((each for each in _ours(context) if each.instance_id not in past), None)
    except ProviderError:
        return None

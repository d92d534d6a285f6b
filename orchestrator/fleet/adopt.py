"""Takes machines that this ledger does not know into it, so that status, fetch and release work: after the state folder
was lost, on another computer, or when a launch whose answer was lost turned up late.

What a machine cannot say (its recipe, how far it got) stays unknown: its run is written as one that is ending.

Example: `adopt(ledger, sight, sight.rows)` -> [Adopted("8xa100-40gb-1120-7hk2pz", "tiny-1120-k3f9qa", "taken in")]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Limits, Recipe, load_recipe
from orchestrator.core.facts.rental_facts import RentalFactChanges, RentalFacts, with_node
from orchestrator.core.fleet.machine_names import NODE_TAG, RUN_TAG
from orchestrator.core.fleet.orphans import Orphan, deadline
from orchestrator.core.machines import MachineType, machine_type
from orchestrator.core.money.billing import MachineLife
from orchestrator.core.planning.planner import make_plan
from orchestrator.core.ports import Address, Instance
from orchestrator.core.states import Outcome, State
from orchestrator.fleet.accounts import Account
from orchestrator.fleet.watcher import Sight
from orchestrator.ledger.identity import is_id, new_run_id
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import (
    INTENT_ADOPTED,
    INTENT_OPEN,
    INTENT_UNSEEN,
    RENTAL_OPEN,
    Attempt,
    IntentAnswer,
    Rental,
    RunRecord,
)

STAND_IN = "quickstart"
CAUSE = "adopted: this ledger knows nothing of how it went"


@dataclass(frozen=True)
class Adopted:
    """What became of one machine. `run`: the run that `gptctl release` and `fetch` take, None where there is none."""

    rental: str
    run: str | None
    what: str


def adopt(ledger: Ledger, seen: Sight, rows: Sequence[Orphan]) -> list[Adopted]:
    """Writes every living machine of `rows` into the ledger. Doing it twice changes nothing."""
    wanted = {(row.provider, row.instance_id) for row in rows if row.alive}
    found = [
        (seen.accounts[name], instance)
        for (name, _), instance in seen.instances.items()
        if (instance.provider, instance.instance_id) in wanted
    ]
    return [_adopt(ledger, account, instance, seen.at) for account, instance in found]


def _adopt(ledger: Ledger, account: Account, instance: Instance, now: float) -> Adopted:
    rental_id = instance.rental_id or ""
    if not is_id(rental_id):
        return Adopted(rental_id, None, "its tag holds no id of ours: left alone")
    known = {rental.id: rental for rental in ledger.rentals()}.get(rental_id)
    if known is None:
        return _take_in(ledger, account, instance, now)
    runs = ledger.runs(rental_id=rental_id)
    run_id, node = runs[0].id if runs else None, _node(instance, known.nodes)
    mine = known.of_node(node)
    if mine.instance_id not in (None, instance.instance_id):
        return Adopted(rental_id, run_id, f"its rental holds {mine.instance_id}: end this one by its id")
    if mine.instance_id is not None and known.state == RENTAL_OPEN:
        return Adopted(rental_id, run_id, "known already")
    _close_intent(ledger, instance)
    facts = _still_known(mine.facts, _life(instance, known.created_at, now))
    own = {
        "instance_id": instance.instance_id, "ends_at": deadline(instance), "address": instance.address or mine.address,
    }  # fmt: skip
    if node:
        kept = {"reached": facts["reached"], "life": facts["life"]}
        own, facts = {}, {"more": with_node(known.facts.more, node, {**own, **kept}), "adopted_at": now}
    each = instance.price_per_hour_usd or known.each_per_hour_usd  # an odd row names none
    ledger.update_rental(
        rental_id, state=RENTAL_OPEN, released_at=None, price_per_hour_usd=each * known.nodes, facts=facts, **own
    )
    return Adopted(rental_id, run_id, "was known without its machine, or as released: open again")


def _close_intent(ledger: Ledger, instance: Instance) -> None:
    for intent in ledger.intents(instance.rental_id):
        if intent.id == instance.intent_id and intent.state in (INTENT_OPEN, INTENT_UNSEEN):
            ledger.close_intent(intent.id, INTENT_ADOPTED, IntentAnswer(instance.instance_id))


def _take_in(ledger: Ledger, account: Account, instance: Instance, now: float) -> Adopted:
    host = _host(account, instance)
    machine = machine_type(host.machine or "")
    node, life = _node(instance, machine.nodes), _life(instance, now, now)
    own = {"instance_id": instance.instance_id, "address": instance.address or Address(), "ends_at": deadline(instance)}
    if node:
        more = with_node((), node, {**own, "reached": life.reached, "life": life.life})
        own, life = {}, RentalFacts(more=more, adopted_at=now)
    rental = Rental(
        id=str(instance.rental_id),
        provider=host.provider,
        host=host.name,
        machine=machine.name,
        created_at=instance.launched_at or now,
        price_per_hour_usd=instance.price_per_hour_usd * machine.nodes,
        folder=host.folder,
        facts=life,
        **own,  # type: ignore[arg-type]
    )
    ledger.add_rental(rental)
    run = _run(instance, host, machine, rental, now)
    if any(run.id == other.id for other in ledger.runs(forgotten=True)):
        return Adopted(rental.id, None, f"taken in; run {run.id} is on another rental here")
    ledger.add_run(run)
    if RUN_TAG in instance.tags:
        ledger.add_attempt(Attempt(run.id, 1, rental.id, rental.created_at))
        return Adopted(rental.id, run.id, "taken in")
    return Adopted(rental.id, run.id, "taken in; it does not say which run it serves, so nothing can be fetched")


def _life(instance: Instance, since: float, now: float) -> RentalFacts:
    """What a bill needs, for the worst: it costs since it was launched. `reached` only if our key to it is here."""
    began, address = instance.launched_at or since, instance.address
    ours = address is not None and address.key_file is not None and Path(address.key_file).is_file()
    return RentalFacts(
        reached=began if ours else None,
        life=MachineLife(booting_at=began, active_at=began, alive_at=since),
        adopted_at=now,
    )


def _still_known(known: RentalFacts, made: RentalFacts) -> RentalFactChanges:
    """What this ledger knew of the machine wins."""
    life = replace(made.life, **{name: at for name, at in vars(known.life).items() if at is not None})
    return {"reached": known.reached or made.reached, "life": life, "adopted_at": made.adopted_at}


def _host(account: Account, instance: Instance) -> HostSpec:
    """The host entry that fits, else the account's first."""
    fitting = [host for host in account.hosts if host.one.machine == instance.machine]
    alike = [host for host in fitting if bool(host.nodes) == (NODE_TAG in instance.tags)]
    return (alike or fitting or list(account.hosts))[0]


def _node(instance: Instance, nodes: int) -> int:
    """Which machine of its rental it is, by its tag."""
    tag = instance.tags.get(NODE_TAG, "0")
    return int(tag) if tag.isdecimal() and int(tag) < nodes else 0


def _run(instance: Instance, host: HostSpec, machine: MachineType, rental: Rental, now: float) -> RunRecord:
    """A run that is ending, so that `release` fetches what is kept there before it gives the machine back."""
    tagged = instance.tags.get(RUN_TAG, "")
    recipe = _stand_in()
    limits = Limits()
    plan = make_plan(recipe, host, machine, None, rates=[], dataset_tokens=None, now=now, limits=limits)
    return RunRecord(
        id=tagged if is_id(tagged) else new_run_id("adopted", now),
        name=rental.id,
        note=CAUSE,
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        recipe_data=recipe.resolved(),
        host=host.name,
        host_data=host.resolved(),
        machine=machine.name,
        rental_id=rental.id,
        plan=plan,
        state=State.ENDING,
        outcome=Outcome.STOPPED,
        cause=CAUSE,
        created_at=rental.created_at,
    )


def _stand_in() -> Recipe:
    """Some recipe has to stand there; nothing is trained from it."""
    told = {**load_recipe(STAND_IN).resolved(), "name": "unknown", "description": "Adopted; another recipe stands in."}
    return Recipe.from_resolved(told)

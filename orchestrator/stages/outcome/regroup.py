"""Regroup: a run over several nodes that lost some goes on, with those that are left or with others in their place.

It is planned again on the same rental, in one transaction, and walks the stages again: what is ready is found ready,
what is missing is bought, and the training starts once more from the newest checkpoint that verifies. So a gptctl that
is killed anywhere in between goes on likewise. What was lost is no longer the rental's: it is ended, and billed until
then.

Example: `after(context, exit_record)`      # True: the run is planned again, without node b
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.agent.contract.answers import ExitRecord
from orchestrator.agent.contract.names import JobName
from orchestrator.core.errors import GptctlError, RemoteError, UserError
from orchestrator.core.facts.rental_facts import GivenBack, Node, RentalFacts
from orchestrator.core.facts.run_facts import LostNodes, ResumeFrom, RunFactChanges
from orchestrator.core.machines import nodes_in
from orchestrator.core.money.cost import spent
from orchestrator.core.planning.many_machines import lost_nodes
from orchestrator.core.planning.plan import Plan
from orchestrator.core.ports import Address
from orchestrator.core.states import Outcome, State
from orchestrator.ledger import attempts
from orchestrator.ledger.records import Attempt, Rental
from orchestrator.stages.checkpoints import continue_from, mirror, store_job
from orchestrator.stages.checkpoints.copies import pull_newest
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.bounds import began_at, pause
from orchestrator.stages.machine.jobs import machine_status, restarts

GRACE_S = 20.0
ASK_S, ASK_EVERY_S = 60.0, 5.0
"""For so long a node that is to go on may be out of reach from here before it counts as lost, too."""
HEARD_WITHIN_S = 60.0
"""A head that is taken away is missed by the other nodes in half of it."""
PROOF_S = 600.0
"""Of the ceiling, kept for a lost machine whose end takes its time."""


def after(context: RunContext, exit_record: ExitRecord) -> bool:
    """Whether the run goes on after this end of its training, which the head has told."""
    outcome, lost = exit_record["outcome"], set(exit_record.get("lost") or ())
    if outcome == Outcome.PREEMPTED and not lost:
        lost = {0}  # its own provider takes the head away
    if outcome not in (Outcome.FAILED, Outcome.PREEMPTED) or not _may(context) or not lost:
        return False
    return _go_on(context, lost, exit_record["reason"])


def without_head(context: RunContext, within_s: float = 0.0) -> bool:
    """The head does not answer: whether the other nodes lost it, too, and the run goes on. within_s: for so long those
    that still train are asked again; they notice within seconds."""
    if not _may(context) or context.run.state != State.TRAINING:
        return False
    until = context.now() + within_s
    while True:
        exits = [_exit_of(node) for node in context.others]
        heard = [found for found in exits if found is not None]
        ended = [each for each in heard if each["outcome"]]
        if ended and len(ended) == len(heard) and all(0 in (each.get("lost") or ()) for each in ended):
            return _go_on(context, {0}, ended[0]["reason"])
        if len(ended) == len(heard) or context.now() >= until:
            return False
        pause(context, ASK_EVERY_S)


def also(context: RunContext, node: RunContext, why: str) -> bool:
    """A run that goes on meets a node that cannot be used: whether it goes on without that one, too."""
    return bool(context.facts.lost_nodes.times) and _may(context) and _go_on(context, {node.node}, why)


def _may(context: RunContext) -> bool:
    return context.machine.nodes > 1 and context.host.on_node_lost != "end" and not context.facts.abandon


def _exit_of(node: RunContext) -> ExitRecord | None:
    """How its training ended; one without an outcome while it runs; None where the node does not answer."""
    try:
        status = machine_status(node)
    except RemoteError:
        node.disconnect()
        return None
    train = None if status is None else status["jobs"].get(JobName.TRAIN)
    running: ExitRecord = {
        "code": None, "signal": None, "outcome": "", "reason": "", "started_at": None, "ended_at": 0.0,
        "duration_s": None, "error": None, "trainer": None, "result": None,
    }  # fmt: skip
    return (train and train["exit"]) or running


def _go_on(context: RunContext, lost: set[int], reason: str) -> bool:
    lost |= _out_of_reach(context, lost)
    names = [context.host.nodes[node] for node in sorted(lost)]
    try:
        places, plan = _planned(context, lost)
        origin, step = _origin(context, places[0])
    except UserError as error:
        context.emit("warning", f"not continued without {', '.join(names)}: {error.message}; {reason}")
        return False
    known = context.facts.lost_nodes
    moved = places[0] != 0
    trained = context.run.state == State.TRAINING
    count = LostNodes(
        known.attempt + 1, (*known.names, *names), known.times + trained, known.lost_steps + _lost(context, step),
        known.since if known.since is not None and not trained else context.now(),
        0 if trained else known.unfit + len(lost), moved,
    )  # fmt: skip
    if moved:
        continue_from.put_aside(context, len(context.ledger.attempts(context.run_id)), step)
    facts: RunFactChanges = {
        "lost_nodes": count, "prepared": None, "peers": (), "cluster": None, "alternatives": (), "deaths": 0,
        "exit": None, "needs_resume": "",
        **({"synced": None, "resume_from": origin, "store_urls": None} if moved else {}),
    }  # fmt: skip
    host = lost_nodes.others(context.host, places)
    run = replace(context.run, host_data=host.resolved(), machine=host.machine or "", plan=plan)
    rental = _rental(context, lost, places, run.machine)
    number = len(context.ledger.attempts(run.id)) + 1
    attempt = Attempt(run.id, number, rental.id, context.now(), from_step=step)
    if not attempts.regroup(context.ledger.rows, attempt, run, rental, facts):
        return False
    context.emit("warning", _words(context, names, reason, count, step), lost=names, step=step)
    context.disconnect()
    return True


def _planned(context: RunContext, lost: Collection[int]) -> tuple[list[int], Plan]:
    """Which nodes there are from now on, by their old numbers, and the plan over them. Raises UserError."""
    known, host = context.facts.lost_nodes, context.host
    most = restarts(context)
    if context.run.state == State.TRAINING and known.times >= most:
        raise UserError(f"it lost nodes {known.times + 1} times, and train.restarts is {most}")
    places = lost_nodes.order(len(host.nodes), lost, replaced=host.on_node_lost == "replace")
    if len(lost) == len(host.nodes) or not places:
        raise UserError("no node is left")
    if host.on_node_lost == "replace":
        return places, context.plan
    return places, lost_nodes.plan_on(context.recipe, context.plan, lost_nodes.others(host, places).machine or "")


def _out_of_reach(context: RunContext, lost: Collection[int]) -> set[int]:
    """Ends what still runs on the nodes that are to go on; those that do not answer are lost, too."""
    silent = set()
    for node in (context, *context.others):
        if node.node in lost:
            continue
        until = context.now() + ASK_S
        while True:
            try:
                node.agent.stop(context.run_id, grace_s=GRACE_S)
                break
            except RemoteError as error:
                node.disconnect()
                if context.now() >= until:
                    context.emit("warning", f"node {context.host.nodes[node.node]}: {error.message}: lost, too")
                    silent.add(node.node)
                    break
                pause(context, ASK_EVERY_S)
    return silent


def _origin(context: RunContext, head: int) -> tuple[ResumeFrom | None, int]:
    """Where it goes on: the head's own newest checkpoint, or, with another head, the newest elsewhere. Raises UserError
    where only the lost head has any."""
    if head == 0:
        status = machine_status(context)
        began = context.facts.resume_from.step if context.facts.resume_from else 0
        return None, max([began, *(status["checkpoints"] if status else [])])
    if store_job.wanted(context) and not context.provider.paid:
        raise UserError("the head is lost and may store its checkpoints later; no two heads write to one store")
    with suppress(GptctlError):  # one that is only about to be taken away has them still
        mirror.mirror_now(context)
        if mirror.is_brought_along(context):
            pull_newest(context)
    found = continue_from.newest(context)
    step = found.step if found else 0
    if found is None and context.run.step >= context.recipe.train.checkpoint_every:
        raise UserError("the head is lost, and nobody else has its checkpoints")
    return found, step


def _lost(context: RunContext, step: int) -> int:
    return max(0, context.run.step - step)


def _rental(context: RunContext, lost: Collection[int], places: Sequence[int], machine: str) -> Rental:
    """The rental as it is from now on: without the lost machines, which it has given back. Its ceiling is what is left,
    at its new price from its very beginning."""
    old = context.rental
    price = old.each_per_hour_usd * nodes_in(machine)
    facts = old.facts
    if not context.provider.paid:
        return replace(old, machine=machine, price_per_hour_usd=price, address=_address(context, places[0]))
    each = [old.of_node(node) for node in range(old.nodes)]
    gone = tuple(GivenBack(each[node].instance_id, each[node].facts.life) for node in sorted(lost))
    kept = [_node(each[place]) if place not in lost else Node() for place in places]
    head = kept[0]
    facts = replace(
        facts, **{name: getattr(head, name) for name in vars(head) if hasattr(facts, name)},
        more=tuple(kept[1:]), given_back=(*facts.given_back, *(one for one in gone if one.instance_id)),
        ceiling_usd=_ceiling_usd(context, price, len(gone)), ceiling_h=facts.ceiling_h or context.plan.limits.max_hours,
    )  # fmt: skip
    row = {"instance_id": head.instance_id, "address": head.address, "ends_at": head.ends_at}
    return replace(old, machine=machine, price_per_hour_usd=price, facts=facts, **row)  # type: ignore[arg-type]


def _node(rental: Rental) -> Node:
    facts = {name: getattr(rental.facts, name) for name in vars(Node()) if hasattr(RentalFacts(), name)}
    row = {"instance_id": rental.instance_id, "address": rental.address, "ends_at": rental.ends_at}
    return Node(**{**facts, **row})


def _ceiling_usd(context: RunContext, price_per_hour_usd: float, lost: int) -> float | None:
    """What was agreed to, less what is spent, and as if the new price had held since the rental began: by that its
    deadline is worked out."""
    rental = context.rental
    ceiling = rental.facts.ceiling_usd if rental.facts.ceiling_usd is not None else context.plan.ceiling_usd
    if ceiling is None:
        return None
    here = [each for each in context.ledger.intervals(context.run_id) if each.rental_id == rental.id]
    held_h = max(0.0, context.now() - began_at(context)) / 3600
    if rental.facts.ceiling_usd is not None and context.facts.lost_nodes.times:
        ceiling += spent(here) - rental.price_per_hour_usd * held_h  # it counts from an earlier price already
    left = ceiling - spent(here) - lost * rental.each_per_hour_usd * PROOF_S / 3600
    return left + price_per_hour_usd * held_h


def _address(context: RunContext, head: int) -> Address:
    return context.rental.address if head == 0 else context.host.other_nodes[head - 1].reach()


def _words(context: RunContext, names: Sequence[str], reason: str, count: LostNodes, step: int) -> str:
    whole = context.ledger.run(context.run_id)
    how = "looking for a replacement" if context.host.on_node_lost == "replace" else f"with {whole.machine}"
    again = f"{count.times} of at most {restarts(context)} times"
    return f"lost {' and '.join(names)} ({reason}): going on from step {step} {how}, {again}"

"""Acquire: hold a machine that answers SSH with the pinned key, or several as one. One acquire call per intent, never
repeated.

Looks first: what an interrupted acquire of this rental already got is adopted; what it gave back is ended. A machine
that turns out bad is given back, with those rented beside it, before the next candidate is tried, with an intent of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from orchestrator.core.errors import (
    GaveUp,
    HostKeyChanged,
    HostKeyUnknown,
    ProviderError,
    RemoteError,
)
from orchestrator.core.facts.rental_facts import RentalFactChanges
from orchestrator.core.parallel import on_each
from orchestrator.core.ports import Address, Instance
from orchestrator.core.states import State
from orchestrator.ledger.records import INTENT_ADOPTED, INTENT_BOUGHT
from orchestrator.stages.context import RunContext
from orchestrator.stages.data import sent_data
from orchestrator.stages.machine import box_guard, give_back
from orchestrator.stages.machine.bounds import MOST_MACHINES, Stopped, hear_stop, pause
from orchestrator.stages.machine.first_contact import boot
from orchestrator.stages.machine.give_back import end_others, undo
from orchestrator.stages.machine.purchase import buy_somewhere, close, find, hold
from orchestrator.stages.outcome import machine_gone, regroup


def acquire(context: RunContext) -> None:
    """Leaves the rental with an instance id, an address and a machine that answered; of a run stopped meanwhile,
    with what it holds by then."""
    with suppress(Stopped):
        _acquire(context)


def _acquire(context: RunContext) -> None:
    context.advance(State.ACQUIRING)
    if (gone := next(filter(machine_gone.was_ended, machine_gone.to_ask_about(context)), None)) is not None:
        return machine_gone.settle(context, gone)
    _part_with_lost(context)
    for attempt in range(1, MOST_MACHINES + 1):
        if not all([_is_held(node) for node in context.machines]):
            sent_data.before_buying(context)
            buy_somewhere(context)
        hear_stop(context)
        try:
            return _use(context)
        except boot.BadMachine as error:
            if context.facts.lost_nodes.times:  # its other nodes have what nobody else has: the ending brings it here
                raise
            others = f", with its {context.rental.nodes - 1} other," if context.rental.nodes > 1 else ""
            context.emit("warning", f"{error.message}: given back{others} ({attempt} of {MOST_MACHINES})")
            undo(context)
        except boot.NeverListed:
            if not context.facts.lost_nodes.times:
                undo(context)
            raise
    raise ProviderError(
        f"{MOST_MACHINES} machines of {context.host.name} in a row were unfit", "try another region or machine type"
    )


def _part_with_lost(context: RunContext) -> None:
    """Nodes that were lost are ended. Another head writes to the store only once the one before is gone for sure."""
    give_back.order_lost(context)
    if context.facts.lost_nodes.head_moved and context.host.checkpoint_store is not None:
        give_back.end_lost(context)
        if left := [each.instance_id for each in context.machine_facts.given_back if each.life.gone_at is None]:
            why = "it may still write to the store"
            raise give_back.still_billing(context, filter(None, left), why)


def _is_held(context: RunContext) -> bool:
    """Whether the machine of this node is held, or was found now: an interrupted acquire may have got it."""
    if context.rental.instance_id is not None:
        close(context, INTENT_BOUGHT, context.rental.instance_id)
    elif (found := find(context)) is not None:
        hold(context, found, INTENT_ADOPTED)
    else:
        return False
    return True


def _use(context: RunContext) -> None:
    for node in context.machines if context.provider.paid else ():
        if not node.machine_facts.reached and (error := _trouble(_await, node)) is not None:
            return _go_on_without(context, node, error)
    troubles = on_each(context.nodes, lambda node: _trouble(_use_node, node))
    for node, error in zip(context.nodes, troubles, strict=True):
        if error is None:
            continue
        if not (node.node and context.run.state == State.TRAINING):
            return _go_on_without(context, node, error)
        node.emit("warning", f"{error.message}; the other nodes go on or end without it")


def _trouble(do: Callable[[RunContext], None], node: RunContext) -> RemoteError | boot.BadMachine | None:
    """Why the node cannot be used; None where it can."""
    try:
        do(node)
    except (RemoteError, boot.BadMachine) as error:
        return error
    return None


def _go_on_without(context: RunContext, node: RunContext, error: RemoteError | boot.BadMachine) -> None:
    if not regroup.also(context, node, error.message):
        raise error


def _use_node(node: RunContext) -> None:
    if node.node and not node.provider.paid:
        return _reach_node(node)
    _reach(node)
    box_guard.arm(node)


def _await(context: RunContext) -> None:
    instance = boot.wait_until_active(context)
    facts: RentalFactChanges = {"private_address": instance.private_address}
    context.update_rental(address=_vouched(context, instance), facts=facts)
    _end_others(context)


def _end_others(context: RunContext) -> None:
    """A second machine costs as much as the first: it is ended now, and not only at the release."""
    try:
        end_others(context, context.provider.machines())
    except ProviderError as error:
        context.emit("seen", f"{error.message}; release looks again for a second machine of {context.rental.id}")


def _vouched(context: RunContext, instance: Instance) -> Address:
    """The address with the fingerprint of the key that was injected; none where first contact is to be trusted."""
    assert instance.address is not None
    return replace(instance.address, fingerprint=context.machine_facts.host_key, python=context.host.python)


def _reach(context: RunContext) -> None:
    """First contact. A machine that never answered is given up; one that did is only out of sight."""
    context.say(f"connecting to {context.host.name}")
    if context.machine_facts.reached:
        return context.agent.ensure()
    try:
        _first_contact(context)
    except (HostKeyUnknown, HostKeyChanged) as error:
        if context.provider.paid:
            raise boot.BadMachine(f"the image ignored the injected host key: {error.message}") from error
        raise GaveUp(error.message, error.hint, cause=error) from error
    except RemoteError as error:
        if context.provider.paid:
            raise boot.BadMachine(f"it is active and does not answer SSH: {error.message}") from error
        raise GaveUp(error.message, error.hint, cause=error) from error
    context.set_rental_facts(reached=context.now())


def _reach_node(node: RunContext) -> None:
    """First contact with another node: all of them train, or none."""
    node.say(f"connecting to {node.host.name}")
    try:
        node.agent.ensure()
    except RemoteError as error:
        raise GaveUp(f"node {node.host.name}: {error.message}", error.hint, cause=error) from error


def _first_contact(context: RunContext) -> None:
    """A rented machine's sshd may come up some seconds after its status says active."""
    until = context.now() + (context.provider.settle_s if context.provider.paid else 0.0)
    while True:
        try:
            return context.agent.ensure()
        except (HostKeyUnknown, HostKeyChanged):
            raise
        except RemoteError:
            if context.now() >= until:
                raise
            context.disconnect()
            pause(context, boot.LOOK_EVERY_S)

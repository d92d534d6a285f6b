"""What is left of a run's host and plan when it loses nodes: the others in their order, the same global batch. Pure.

Example: `others(host, [1], replaced=False)` is the host of nodes 0 and 2, and `plan_on(recipe, plan, "2x8xH100")` its
plan: more accumulation, the price and the speed of two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.config.recipe import Recipe
from orchestrator.core.errors import UserError
from orchestrator.core.machines import MachineType, machine_type, several
from orchestrator.core.planning.batch import choose_batch
from orchestrator.core.planning.forecast import spread
from orchestrator.core.planning.plan import Plan
from trainer.arithmetic import divisors

OF_MACHINE = (
    "address", "port", "user", "ssh_key", "fingerprint", "folder", "data_folder", "python", "gpus", "private_address",
)  # fmt: skip
"""Of a host with nodes these say how its first one is reached, and what is there; all else is of all nodes."""


def order(nodes: int, lost: Collection[int], *, replaced: bool) -> list[int]:
    """The numbers that its nodes had, in the order of what they are from now on. A replaced one keeps its place; only
    that of the head goes to the first of the others."""
    left = [node for node in range(nodes) if node not in lost]
    if not replaced or not left:
        return left
    places = list(range(nodes))
    if 0 in lost:
        places[0], places[left[0]] = left[0], 0
    return places


def others(host: HostSpec, places: Sequence[int]) -> HostSpec:
    """The host with these of its nodes, the first of them its head."""
    own = host.resolved()
    tables: list[dict[str, object]] = [{**own, "nodes": [], "peers": [], "on_node_lost": "end"}, *host.peers]
    tables[0] |= {"name": host.nodes[0], "machine": machine_type(host.machine or "").node.name}
    head = tables[places[0]] if places[0] == 0 else host.other_nodes[places[0] - 1].resolved()
    one_is_left = len(places) == 1
    changed: dict[str, object] = {
        "nodes": [] if one_is_left else [host.nodes[place] for place in places],
        "peers": [tables[place] for place in places[1:]],
        "machine": several(machine_type(host.machine or "").node.name, len(places)),
        "machines": [],
        "on_node_lost": "end" if one_is_left else host.on_node_lost,
    }
    return HostSpec.from_resolved({**own, **{key: head.get(key) for key in OF_MACHINE}, **changed})


def plan_on(recipe: Recipe, plan: Plan, machine: str) -> Plan:
    """The plan with the same global batch over fewer nodes. Raises UserError where that does not divide or fit."""
    before, now = machine_type(plan.machine), machine_type(machine)
    batch = choose_batch(recipe, now)
    if not batch.fits:
        raise UserError(batch.why)
    most = min(plan.micro_batch, batch.micro_batch)  # of the probe, which the machine has shown to fit
    share = plan.global_batch // now.ranks
    micro_batch = max(size for size in divisors(share) if size <= most)
    part = now.nodes / before.nodes
    price = None if plan.price_per_hour_usd is None else plan.price_per_hour_usd * part
    hours = plan.hours.with_train(plan.hours.train / part)
    return dataclasses.replace(
        plan,
        machine=machine,
        ranks=now.ranks,
        micro_batch=micro_batch,
        accumulation=share // micro_batch,
        tokens_per_second=plan.tokens_per_second * part,
        rate_source=f"{now.nodes} of {before.nodes} nodes: {plan.rate_source}",
        hours=hours,
        price_per_hour_usd=price,
        cost_usd=spread(hours, price, plan.uncertainty),
    )


def cannot_continue(recipe: Recipe, host: HostSpec | None, machine: MachineType) -> str:
    """Why the training could not go on after the loss of one node, where the host asks for that; else empty."""
    if host is None or host.on_node_lost != "continue" or machine.nodes == 1:
        return ""
    left = machine_type(several(machine.node.name, machine.nodes - 1))
    batch = choose_batch(recipe, left)
    if batch.fits:
        return ""
    return f'on_node_lost = "continue": with one node less, {batch.why}'

"""Meet: before any data moves, every node reaches every other at the address where their ranks will meet.

It finds the addresses, has every pair exchange bytes, and says how fast the slowest link is. Nothing trains yet, so
what a firewall, a wrong network or another torch would break is a clear error in seconds.

Example::

    meet(context, facts)                     # 'a and b meet at 10.0.0.2 and 10.0.0.3, 1180 MB/s, clocks 0.1 s apart'
    spec["cluster"] = cluster_of(node)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import fields
from ipaddress import IPv4Interface as Interface
from ipaddress import IPv4Network as Network

from orchestrator.agent.contract.answers import ExitRecord, Meeting
from orchestrator.agent.contract.facts import Facts
from orchestrator.agent.contract.names import JobName
from orchestrator.agent.contract.requests import Cluster as ClusterSpec
from orchestrator.agent.contract.requests import JobSpec
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.facts.run_facts import Cluster
from orchestrator.core.parallel import on_each
from orchestrator.core.planning.planner import over_link
from orchestrator.core.planning.rates import MeasuredRate
from orchestrator.remote.agent_client.decoding import decoded
from orchestrator.remote.agent_client.job_failure import failure
from orchestrator.stages.context import RunContext
from orchestrator.stages.machine.jobs import run_job, start_job

FIRST_PORT, PORTS = 20_000, 6_000
"""Below those that the system gives to connections of its own; each run takes two."""
CLOCKS_APART_S = 5.0


def meet(context: RunContext, facts: Sequence[Facts]) -> None:
    """Leaves `cluster` in the run's record. Raises MachineUnfit for nodes that cannot train together."""
    if context.machine.nodes == 1 or context.engine_of is not None:
        return
    _check_same_torch(context.nodes)
    addresses = private_addresses([_host(node) for node in context.nodes], facts)
    port = FIRST_PORT + 2 * (zlib.crc32(_start_id(context).encode()) % PORTS)
    context.set_run_facts(cluster=Cluster(addresses, port))
    digest = f"{port}-{'-'.join(addresses)}"
    on_each(context.nodes, lambda node: start_job(node, node.agent, JobName.MEET, digest, _spec(node)))
    ends = on_each(context.nodes, lambda node: run_job(node, node.agent, JobName.MEET, digest, _spec(node)))
    met = [_met(node, end) for node, end in zip(context.nodes, ends, strict=True)]
    _check(context.nodes, addresses, met)
    slowest = min(pair["mb_per_s"] for each in met for pair in each["pairs"])
    apart_s = max(abs(pair["clock_s"]) for each in met for pair in each["pairs"])
    context.set_run_facts(cluster=Cluster(addresses, port, slowest))
    names = " and ".join(head_name(node.host) for node in context.nodes)
    context.say(f"{names} meet at {' and '.join(addresses)}: {slowest:.0f} MB/s, clocks {apart_s:.1f} s apart")
    _plan_with(context, slowest)
    if apart_s > CLOCKS_APART_S:
        context.emit("warning", f"the clocks of {names} are {apart_s:.0f} s apart: times in their logs do not compare")


def _plan_with(context: RunContext, mb_per_s: float) -> None:
    """The link as measured in place of the assumed one: hours and dollars follow, and the plan says so."""
    plan = over_link(context.recipe, context.plan, context.machine, _measured(context), mb_per_s)
    if plan == context.plan:
        return
    context.ledger.update_run(context.run_id, plan=plan)
    hours = f"{plan.hours.total:.1f} h"
    cost = "" if plan.cost_usd.total is None else f", ${plan.cost_usd.total:.2f}"
    context.emit("plan_amended", f"over {mb_per_s:.0f} MB/s: {hours}{cost}", digest=plan.digest)
    for said in plan.warnings:
        if " over " in said and said.startswith(f"{context.machine.nodes} x "):
            context.emit("warning", said)


def _measured(context: RunContext) -> list[MeasuredRate]:
    names = [each.name for each in fields(MeasuredRate)]
    return [MeasuredRate(**{name: getattr(rate, name) for name in names}) for rate in context.ledger.rates()]


def cluster_of(node: RunContext) -> ClusterSpec:
    """What the agent of this node has to know of the others."""
    cluster = node.facts.cluster
    assert cluster is not None
    whole = HostSpec.from_resolved(node.run.host_data)
    return {
        "id": _start_id(node),
        "node": node.node,
        "addresses": list(cluster.addresses),
        "names": list(whole.nodes),
        "port": cluster.port,
    }


def _start_id(context: RunContext) -> str:
    """Of a start over several nodes: they hear those of the same one only."""
    return f"{context.run_id}.{context.facts.lost_nodes.attempt}"


def head_name(host: HostSpec) -> str:
    """The first node's own name in the inventory."""
    return host.nodes[0] if host.nodes else host.name


def _host(node: RunContext) -> HostSpec:
    """Its entry; of a rented machine with the address that its provider gave it for the others."""
    given = node.machine_facts.private_address if node.provider.paid else ""
    return node.host.model_copy(update={"private_address": given}) if given else node.host


def private_addresses(hosts: Sequence[HostSpec], facts: Sequence[Facts]) -> tuple[str, ...]:
    """Each node's address for the others: as the inventory says, else in a network that all of them are in, else the
    one that SSH reaches, else the first private one. Raises MachineUnfit for a node without any."""
    found = [[Interface(each) for each in machine.get("addresses", {}).values()] for machine in facts]
    everywhere = set.intersection(*(set(own) for own in found))  # a bridge of containers, which leads nowhere
    found = [[each for each in own if each not in everywhere] for own in found]
    shared = set.intersection(*({each.network for each in own} for own in found))
    return tuple(_private_address(host, own, shared) for host, own in zip(hosts, found, strict=True))


def _private_address(host: HostSpec, own: Sequence[Interface], shared: set[Network]) -> str:
    if host.private_address is not None:
        return host.private_address
    together = [each for each in own if each.network in shared]
    reached = [each for each in own if str(each.ip) == host.address]
    private = [each for each in own if each.ip.is_private]
    for each in (*together, *reached, *private, *own):
        return str(each.ip)
    raise MachineUnfit(
        f"{host.name}: no interface there has an IPv4 address, and the nodes need one to meet",
        f"connect it to the network of the others, and look with: gptctl check {host.name}",
    )


def _check_same_torch(nodes: Sequence[RunContext]) -> None:
    torch = {head_name(node.host): node.prepared.torch for node in nodes}
    if len(set(torch.values())) > 1:
        found = ", ".join(f"{name} has {version}" for name, version in torch.items())
        raise MachineUnfit(
            f"nodes need the same torch to compute the same numbers: {found}",
            "set `python` of those hosts to interpreters with one torch, or delete it: gptctl then builds one",
        )


def _spec(node: RunContext) -> JobSpec:
    return {"cluster": cluster_of(node)}


def _met(node: RunContext, exit_record: ExitRecord) -> Meeting:
    if exit_record["outcome"] != "finished":
        raise MachineUnfit(f"node {head_name(node.host)}: {failure(exit_record)['message']}")
    return decoded(Meeting, exit_record["result"], JobName.MEET)


def _check(nodes: Sequence[RunContext], addresses: Sequence[str], met: Sequence[Meeting]) -> None:
    """Raises MachineUnfit that names every pair which does not reach each other."""
    names = [head_name(node.host) for node in nodes]
    cut = [
        f"{names[number]} does not reach {names[lost['node']]} at {addresses[lost['node']]}: {lost['error']}"
        for number, each in enumerate(met)
        for lost in each["missing"]
    ]
    if cut:
        raise MachineUnfit(
            "; ".join(cut),
            "allow TCP between the nodes, or set private_address of these hosts to another of their networks",
        )

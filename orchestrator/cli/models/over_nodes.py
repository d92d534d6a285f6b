"""The nodes of a run that measure together: the agent of each, its interpreter, and how their ranks meet.

A node that does not answer leaves the head to measure alone. It must not start anything.

Example: `with measuring(ledger, run, program) as nodes: nodes[0].agent`
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from orchestrator.agent.contract.requests import Cluster, JobSpec
from orchestrator.cli.connections import agent_of
from orchestrator.cli.inference.trainer_program import Program
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import RemoteError
from orchestrator.core.machines import machine_type
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import RunRecord
from orchestrator.remote.agent_client.client import Agent
from orchestrator.remote.shell.opened import open_shell


class Node(NamedTuple):
    """One of them: its agent, and the trainer there."""

    agent: Agent
    program: Program


@contextlib.contextmanager
def measuring(ledger: Ledger, run: RunRecord, program: Program) -> Iterator[list[Node]]:
    """The head, and the other nodes of the run where all of them answer."""
    with contextlib.ExitStack() as stack:
        head = Node(stack.enter_context(agent_of(ledger, run)), program)
        yield [head, *_others(ledger, run, program, stack)]


def _others(ledger: Ledger, run: RunRecord, program: Program, stack: contextlib.ExitStack) -> list[Node]:
    hosts, known, found = HostSpec.from_resolved(run.host_data).other_nodes, run.facts.peers, list[Node]()
    if run.facts.cluster is None:
        return []
    for number, (host, peer) in enumerate(zip(hosts, known, strict=False), start=1):
        if peer.prepared is None or peer.synced is None:
            return []
        rental = ledger.rental(run.rental_id or "")
        address = rental.of_node(number).address if host.paid else host.reach()
        try:
            shell = stack.enter_context(contextlib.closing(open_shell(ledger.home, address)))
            agent = Agent(shell, rental.folder if host.paid else host.folder)
            agent.status(run.id)
        except RemoteError as error:
            from orchestrator.cli.screen import screen

            screen.talk(f"node {number}: {error.message}; measuring on the head alone", style="yellow")
            return []
        found.append(Node(agent, replace(program, python=peer.prepared.python, source=peer.synced.source)))
    return found


def spec(run: RunRecord, nodes: Sequence[Node], node: int, argv: Sequence[str], digest: str) -> JobSpec:
    """What this node's agent gets: over several, torchrun starts a rank for each of its GPUs."""
    program, cluster = nodes[node].program, run.facts.cluster
    own: JobSpec = {"argv": [*argv], "pythonpath": program.source, "cwd": nodes[node].agent.root}
    if len(nodes) == 1 or cluster is None:
        return own
    names = HostSpec.from_resolved(run.host_data).nodes
    meets: Cluster = {
        "id": f"{run.id}.{digest}", "node": node, "addresses": [*cluster.addresses], "names": [*names],
        "port": cluster.port,
    }  # fmt: skip
    return {**own, "cluster": meets, "ranks": machine_type(run.machine).ranks // len(nodes)}

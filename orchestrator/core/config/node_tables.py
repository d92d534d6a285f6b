"""Hosts of several machines: the whole table of an inventory's entry that counts or names its nodes. Pure.

Example: `table_of(path, "pair", {"a": ..., "b": ..., "pair": {"nodes": ["a", "b"]}})["machine"]` -> "2x1x3090"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.core.errors import UserError
from orchestrator.core.machines import MOST_NODES, machine_type, several
from orchestrator.core.ports import UNPAID
from orchestrator.core.suggest import one_of


def table_of(path: Path | None, name: str, tables: Mapping[str, dict[str, object]]) -> dict[str, object]:
    """The host's table; of one with nodes with what it has from its first, and with the others. Raises UserError for
    nodes that cannot train together, as far as the file tells."""
    own = {**tables[name], "name": name}
    nodes = own.get("nodes")
    if "peers" in own:
        raise UserError(f"inventory {path}: hosts.{name}: peers: gptctl sets it; name the nodes in `nodes`")
    if isinstance(nodes, int) and not isinstance(nodes, bool):
        return _several(f"inventory {path}: hosts.{name}: nodes", own, nodes)
    if not isinstance(nodes, list):
        return own
    where = f"inventory {path}: hosts.{name}: nodes"
    _check_nodes(where, nodes, own, tables)
    first, *others = nodes
    head = {"address": first, **tables[first]}
    machine = f"{len(nodes)}x{head['machine']}"
    peers = [{"address": other, **tables[other], "name": other} for other in others]
    return {**head, **own, "machine": machine, "peers": peers}


def _several(where: str, own: dict[str, object], nodes: int) -> dict[str, object]:
    """The table of a cloud's host of so many machines. Raises UserError where they cannot be rented as one."""
    if str(own.get("provider", "ssh")) in UNPAID:
        raise UserError(f"{where}: only machines of a cloud are counted; name your own, such as a and b")
    if not 2 <= nodes <= MOST_NODES:
        raise UserError(f"{where}: must be between 2 and {MOST_NODES}, got {nodes}")
    if "private_address" in own:
        raise UserError(f"{where}: the cloud gives each machine its `private_address`; delete it here")
    names = [f"{own['name']}-{number}" for number in range(nodes)]
    one = {key: value for key, value in own.items() if key != "on_node_lost"}
    peers = [{**one, "nodes": [], "name": each} for each in names[1:]]
    kinds = {"machine": several(str(own.get("machine")), nodes)} if own.get("machine") else {}
    others = own.get("machines")
    more = {"machines": [several(str(each), nodes) for each in others]} if isinstance(others, list) else {}
    return {**own, **kinds, **more, "nodes": names, "peers": peers}


def of_one(machine: str) -> str:
    """The type of one of the machines that train together: `8xH100` of `2x8xH100`."""
    return machine_type(machine).node.name


def _check_nodes(where: str, nodes: list[object], own: Mapping[str, object], tables: Mapping[str, object]) -> None:
    """Raises UserError for nodes that cannot train together, as far as the file tells."""
    if len(nodes) < 2 or len(set(map(str, nodes))) < len(nodes):
        raise UserError(f"{where}: needs two different hosts or more, got {nodes!r}")
    if set(own) & {"machine", "address"}:
        raise UserError(f"{where}: `machine` and `address` are those of its nodes; delete them here")
    machines = {}
    for node in nodes:
        table = tables.get(str(node))
        if not isinstance(table, dict):
            raise UserError(f"{where}: unknown host {node!r}; known: {one_of(tables)}")
        if table.get("provider", "ssh") != "ssh" or "nodes" in table:
            raise UserError(f"{where}: {node} is not a single machine of provider ssh")
        machines[str(node)] = str(table.get("machine"))
    if len(set(machines.values())) > 1:
        found = ", ".join(f"{node} is {machine}" for node, machine in machines.items())
        raise UserError(f"{where}: nodes train in step, so all are of one machine type; {found}")

"""What a second machine is worth to one training: whether the nodes are faster than one of them, and at what price.

Pure. The network between nodes is what the inventory says, else assumed: the gradients of every step cross it.

Example: `verdict(machine_type("2x8xH100"), 0.5, 100.0)` is "2 x 8xH100 over 100 Gbit/s: 2.0x slower ...".
"""

from __future__ import annotations

from orchestrator.core.machines import MachineType, assumed
from trainer.arithmetic.scale import Network

TCP_LATENCY_S = 30e-6
WORTH_IT = 0.85
"""Of as many times one node's speed as there are nodes: below, the plan says what else they could do."""


def network(link_gbit_per_s: float | None) -> Network:
    """Between the nodes: as the inventory has it, else as assumed."""
    return Network((link_gbit_per_s or assumed().link_gbit_per_s) * 1e9 / 8, TCP_LATENCY_S)


def verdict(machine: MachineType, speedup: float, link_gbit_per_s: float | None) -> str:
    """What the plan says about its nodes, `speedup` times as fast as one of them; empty where that is nearly as many
    times as there are nodes."""
    if speedup >= WORTH_IT * machine.nodes:
        return ""
    link = f"{link_gbit_per_s or assumed().link_gbit_per_s:g} Gbit/s{'' if link_gbit_per_s else ' (assumed)'}"
    speed = f"{1 / speedup:.1f}x slower than one" if speedup < 1 else f"only {speedup:.1f}x as fast as one"
    each = "two" if machine.nodes == 2 else str(machine.nodes)
    price = f"at {machine.nodes / speedup:.1f}x the price for the same tokens"
    return (
        f"{machine.nodes} x {machine.node.name} over {link}: {speed}, {price}; "
        f"train {each} interventions instead, one on each: gptctl sweep"
    )

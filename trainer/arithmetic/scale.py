"""What more machines bring to one training: the step over several nodes, by the roofline and the network between them.

Standard library only. The all-reduce is a ring inside a node and one between nodes, whose network carries the node's
whole gradient (as in NCCL's tests, https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md). It must not
measure: a measured link replaces the name's figure.

Example, two machines with eight H100 each over 100 GbE against one::

    job = Spread(gpus_per_node=8, nodes=2, network=NETWORKS["100 GbE"])
    scaled(ModelConfig(), 96, job, Card(989e12, 3.35e12, 370e9, 0.5, 0.33), most=12).speedup      # 0.4
"""

from __future__ import annotations

import typing

from trainer.arithmetic import divisors
from trainer.arithmetic.roofline import Card, Job, step_seconds
from trainer.contract import ModelConfig


class Network(typing.NamedTuple):
    """Between nodes: bytes per second of one node in each direction, and seconds until the first of them arrives."""

    bytes_per_s: float
    latency_s: float


NETWORKS = {
    "3.2 Tb/s": Network(400e9, 10e-6),
    "400 Gb/s": Network(50e9, 10e-6),
    "100 GbE": Network(12.5e9, 30e-6),
    "10 GbE": Network(1.25e9, 50e-6),
    "1 GbE": Network(0.125e9, 100e-6),
}
"""Line rates; TCP reaches two thirds of them in practice, sometimes a third."""


class Spread(typing.NamedTuple):
    """How one training is spread."""

    gpus_per_node: int
    nodes: int
    network: Network


class Scaled(typing.NamedTuple):
    """One step on all nodes. `speedup` over one of the nodes; `efficiency`: that divided by their number."""

    micro_batch: int
    step_s: float
    exposed_s: float
    """Of the all-reduce, what the backward pass does not hide."""
    speedup: float
    efficiency: float


def scaled(model: ModelConfig, global_batch: int, spread: Spread, card: Card, most: int) -> typing.Optional[Scaled]:
    """The step of `global_batch` sequences; None where it does not divide over all GPUs.

    most: the largest micro-batch that fits a card.
    """
    one = _step(model, global_batch, spread._replace(nodes=1), card, most)
    all_of_them = _step(model, global_batch, spread, card, most)
    if one is None or all_of_them is None:
        return None
    (_, alone_s, _), (micro_batch, step_s, exposed_s) = one, all_of_them
    return Scaled(micro_batch, step_s, exposed_s, alone_s / step_s, alone_s / step_s / spread.nodes)


def _step(
    model: ModelConfig, global_batch: int, spread: Spread, card: Card, most: int
) -> typing.Optional[typing.Tuple[int, float, float]]:
    ranks = spread.gpus_per_node * spread.nodes
    share, left = divmod(global_batch, ranks)
    if left or not share:
        return None
    micro_batch = next(size for size in divisors(share) if size <= most)
    network = spread.network
    split = Job(
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=share // micro_batch,
        nodes=spread.nodes,
        network_bytes_per_s=network.bytes_per_s,
        network_latency_s=network.latency_s,
    )
    step = step_seconds(model, split, card)
    return micro_batch, step.total, step.parts["all_reduce"]

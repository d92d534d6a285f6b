"""What more machines bring, on paper."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.arithmetic.roofline import Card
from trainer.arithmetic.scale import NETWORKS, Network, Spread, scaled
from trainer.contract import ModelConfig

H100 = Card(989e12, 3.35e12, 370e9, 0.5, 0.33)
RTX3090 = Card(71e12, 936e9, 10e9, 0.8, 0.42)
SMALL = ModelConfig()


@pytest.mark.parametrize(
    ("card", "gpus", "network", "least", "most"),
    [
        (H100, 8, "400 Gb/s", 1.0, 1.4),
        (H100, 8, "100 GbE", 0.4, 0.6),
        (H100, 8, "10 GbE", 0.0, 0.1),
        (RTX3090, 1, "10 GbE", 1.2, 1.7),
        (RTX3090, 1, "1 GbE", 0.25, 0.45),
    ],
)
def test_two_machines_against_one(card: Card, gpus: int, network: str, least: float, most: float) -> None:
    found = scaled(SMALL, 96, Spread(gpus, 2, NETWORKS[network]), card, 12)
    assert found is not None and least <= found.speedup <= most
    assert found.efficiency == pytest.approx(found.speedup / 2)


@given(nodes=st.sampled_from([2, 4, 8]), gbit=st.floats(1, 3200))
def test_a_faster_network_never_costs_time(nodes: int, gbit: float) -> None:
    slow, fast = (
        scaled(SMALL, 512, Spread(8, nodes, Network(times * gbit * 125e6, 30e-6)), H100, 8) for times in (1, 2)
    )
    assert slow is not None and fast is not None
    assert fast.step_s <= slow.step_s and 0 < fast.efficiency <= 1.01
    assert slow.exposed_s >= fast.exposed_s > 0


@pytest.mark.parametrize(("sequences", "nodes"), [(96, 16), (96, 512), (100, 2)])
def test_a_batch_ends_it(sequences: int, nodes: int) -> None:
    assert scaled(SMALL, sequences, Spread(8, nodes, NETWORKS["3.2 Tb/s"]), H100, 12) is None


@pytest.mark.parametrize(("size_mb", "mbit", "measured_ms"), [(2.032, 200, 76.9), (16, 200, 669), (2.032, 1000, 16.4)])
def test_the_ring_between_two_nodes_is_as_measured(size_mb: float, mbit: float, measured_ms: float) -> None:
    """Gloo between two network namespaces whose link tc shaped, measured when the model was chosen."""
    network = Network(mbit * 125e3, 1e-4)
    assert 2 * 0.5 * size_mb * 1e6 / network.bytes_per_s * 1e3 == pytest.approx(measured_ms, rel=0.08)

"""Before data moves: what the nodes measured of each other is said, refused where it cannot train, and planned with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.agent.contract.facts import Facts
from orchestrator.core.errors import MachineUnfit
from orchestrator.core.facts.run_facts import Prepared
from orchestrator.stages.context import RunContext
from orchestrator.stages.nodes import meet as stage
from tests.support.machines.lying_account import rented
from tests.support.machines.seller import Seller

FACTS: list[Facts] = [{"addresses": {"eth1": f"10.0.0.{node}/24"}} for node in (2, 3)]  # type: ignore[typeddict-item]


def pair(node: int, mb_per_s: float = 1180.0, clock_s: float = 0.1) -> dict[str, Any]:
    return {"node": node, "ms": 0.2, "mb_per_s": mb_per_s, "clock_s": clock_s}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunContext]:
    monkeypatch.setattr(RunContext, "agent", SimpleNamespace())
    monkeypatch.setattr(stage, "start_job", lambda *_: None)
    with rented(tmp_path, Seller(), monkeypatch, None, 2) as found:
        for node in found.nodes:
            node.set_run_facts(prepared=Prepared("/python", torch="2.9.1"))
        yield found


def meeting(monkeypatch: pytest.MonkeyPatch, context: RunContext, *results: dict[str, Any]) -> list[str]:
    """What is said of it. results: of each node."""
    monkeypatch.setattr(
        stage, "run_job", lambda node, *_: {"outcome": "finished", "result": {"missing": [], **results[node.node]}}
    )
    stage.meet(context, FACTS)
    return [event.text for event in context.ledger.events(context.run_id)]


def test_the_slowest_link_is_recorded_and_replaces_the_assumed_one(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = context.plan
    said = meeting(monkeypatch, context, {"pairs": [pair(1, 125.0)]}, {"pairs": [pair(0, 130.0)]})
    assert "cloud-0 and cloud-1 meet at 10.0.0.2 and 10.0.0.3: 125 MB/s, clocks 0.1 s apart" in said
    assert context.facts.cluster is not None and context.facts.cluster.mb_per_s == 125.0
    after = context.plan
    assert after.rate_source.endswith("over 125 MB/s as measured")
    assert after.tokens_per_second < before.tokens_per_second and after.hours.train > before.hours.train
    assert any(text.startswith("2 x 8xA100-40GB over 1 Gbit/s: ") for text in said)


def test_clocks_that_are_apart_are_a_warning(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    said = meeting(monkeypatch, context, {"pairs": [pair(1, clock_s=-60.0)]}, {"pairs": [pair(0, clock_s=60.0)]})
    assert any("the clocks of cloud-0 and cloud-1 are 60 s apart" in text for text in said)


def test_a_firewall_between_them_is_named_with_both_nodes(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"node": 1, "error": "[Errno 111] Connection refused"}
    with pytest.raises(MachineUnfit, match=r"cloud-0 does not reach cloud-1 at 10\.0\.0\.3: \[Errno 111\]") as caught:
        meeting(monkeypatch, context, {"pairs": [], "missing": [refused]}, {"pairs": [pair(0)]})
    assert "allow TCP between the nodes" in caught.value.hint


def test_nodes_with_another_torch_do_not_meet(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context.nodes[1].set_run_facts(prepared=Prepared("/python", torch="2.10.0"))
    with pytest.raises(MachineUnfit, match=r"cloud-0 has 2\.9\.1, cloud-1 has 2\.10\.0"):
        meeting(monkeypatch, context, {"pairs": [pair(1)]}, {"pairs": [pair(0)]})

"""Nodes that cannot train together: each is named before any step, and nothing of the run stays on either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Gptctl
from tests.support.files.recipes import write_small
from tests.support.machines.private_network import two_hosts

pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Broken:
    """What is wrong with the second node, and what is said of it."""

    says: str
    extra: str = ""
    cut: bool = False
    down: bool = False


NODES = {
    "a link between them that loses every packet": Broken("na does not reach nb at 10.199.", cut=True),
    "an address that no interface has": Broken("cannot listen at 10.9.9.9", extra='private_address = "10.9.9.9"\n'),
    "an address in a network of its own": Broken("na does not reach nb at 10.197.", extra="{own}"),
    "a node that is off": Broken("node nb: ", down=True),
}


@pytest.mark.parametrize("name", NODES)
def test_nodes_that_cannot_train_together(name: str, gptctl: Gptctl, tmp_path: Path) -> None:
    fault = NODES[name]
    write_small(tmp_path, steps=10, every=10, machine="2x1xCPU")
    with two_hosts(tmp_path, {"nb": fault.extra if fault.extra != "{own}" else ""}) as pair:
        if fault.extra == "{own}":
            _set_own_address(Path(pair.inventory), pair.hosts[1].host)
        if fault.cut:
            pair.network.cut(pair.hosts[1])
        if fault.down:
            pair.hosts[1].kill()
        done = gptctl("run", "tiny.toml", "--host", "pair", "--inventory", pair.inventory, "--yes")
        assert done.returncode == 4, done.stderr
        assert fault.says in done.stderr
        assert "never_started" in done.stdout
        assert not list(pair.hosts[0].home.glob(".gptctl/runs/*/metrics.jsonl"))


def _set_own_address(inventory: Path, address: str) -> None:
    """nb's other address, which only this computer reaches."""
    text = inventory.read_text().replace("[hosts.nb]\n", f'[hosts.nb]\nprivate_address = "{address}"\n')
    inventory.write_text(text)

"""Several machines of one rental that this ledger does not know: each becomes the node that its tag says."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator.core.config.inventory import load_inventory
from orchestrator.core.fleet.machine_names import NODE_TAG, RENTAL_TAG, RUN_TAG
from orchestrator.core.fleet.orphans import survey
from orchestrator.core.ports import Address, Instance, Provider
from orchestrator.fleet.accounts import Account
from orchestrator.fleet.adopt import adopt
from orchestrator.fleet.known_rentals import known_rentals
from orchestrator.fleet.watcher import Sight
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.records import Rental

INVENTORY = """
[hosts.one]
provider = "lambda"
machine = "8xA100-40GB"
[hosts.pair]
provider = "lambda"
machine = "8xA100-40GB"
nodes = 2
"""
RENTAL, NOW = "2x8xa100-40gb-1130-7hk2pz", 1_800_000_000.0


def machine(node: int) -> Instance:
    tags = {RENTAL_TAG: RENTAL, RUN_TAG: "tiny-1130-k3f9qa", NODE_TAG: str(node)}
    return Instance(
        "lambda", f"i-{node}", "8xA100-40GB", Address(f"10.0.0.{node}"), rental_id=RENTAL, tags=tags,
        price_per_hour_usd=15.92, launched_at=NOW - 600, ends_at=NOW + 3600,
    )  # fmt: skip


def survivors(*nodes: tuple[str, int]) -> list[Instance]:
    """Machines by id, each with the number of its node in its tags."""
    return [replace(machine(node), instance_id=name, address=Address(f"10.0.0.{name[2:]}")) for name, node in nodes]


def adopted(folder: Path, listed: list[Instance]) -> Rental:
    """The rental as an empty ledger has it after two looks."""
    (folder / "inventory.toml").write_text(INVENTORY)
    hosts = load_inventory(folder / "inventory.toml", folder).hosts
    account = Account("lambda", cast("Provider", None), (hosts["one"], hosts["pair"]))
    with Ledger.open(folder, lambda: NOW) as ledger:
        for _ in range(2):
            rows = survey(listed, known_rentals(ledger), NOW)
            adopt(
                ledger,
                Sight(NOW, rows, {("lambda", each.instance_id): each for each in listed}, {"lambda": account}),
                rows,
            )
        return ledger.rental(RENTAL)


@pytest.mark.parametrize(
    ("listed", "ids"),
    [
        pytest.param(survivors(("i-0", 0), ("i-2", 1)), ("i-0", "i-2"), id="node 1 was replaced"),
        pytest.param(survivors(("i-2", 0), ("i-1", 1)), ("i-2", "i-1"), id="node 0 was replaced"),
        pytest.param(survivors(("i-1", 1)), ("i-1",), id="the head was lost, and the other went on alone"),
        pytest.param(survivors(("i-0", 0)), ("i-0",), id="node 1 was lost, and the head went on alone"),
    ],
)
def test_after_a_loss_every_machine_that_is_left_is_taken_in_by_the_number_of_its_node(
    tmp_path: Path, listed: list[Instance], ids: tuple[str, ...]
) -> None:
    rental = adopted(tmp_path, listed)
    assert rental.instance_ids == ids
    for each in listed:
        node = rental.of_node(int(each.tags[NODE_TAG]))
        assert (node.instance_id, node.address) == (each.instance_id, each.address)
    with Ledger.open(tmp_path, lambda: NOW) as ledger:
        assert [each.instance_id for each in known_rentals(ledger)[RENTAL].machines] == [*ids]


@pytest.mark.parametrize("order", [*itertools.permutations((0, 1))])
def test_both_are_taken_in_as_one_rental_whichever_comes_first(tmp_path: Path, order: tuple[int, int]) -> None:
    (tmp_path / "inventory.toml").write_text(INVENTORY)
    hosts = load_inventory(tmp_path / "inventory.toml", tmp_path).hosts
    account = Account("lambda", cast("Provider", None), (hosts["one"], hosts["pair"]))
    listed = [machine(node) for node in order]
    with Ledger.open(tmp_path, lambda: NOW) as ledger:
        rows = survey(listed, known_rentals(ledger), NOW)
        seen = Sight(NOW, rows, {("lambda", each.instance_id): each for each in listed}, {"lambda": account})
        for _ in range(2):
            adopt(ledger, seen, rows)
        rental = ledger.rental(RENTAL)
        assert (rental.machine, rental.instance_ids, rental.price_per_hour_usd) == (
            "2x8xA100-40GB", ("i-0", "i-1"), pytest.approx(31.84),
        )  # fmt: skip
        assert [rental.of_node(node).address.host for node in (0, 1)] == ["10.0.0.0", "10.0.0.1"]
        assert ledger.billing_per_hour_usd() == pytest.approx(31.84)
        assert [each.instance_id for each in known_rentals(ledger)[RENTAL].machines] == ["i-0", "i-1"]
        (run,) = ledger.runs(rental_id=RENTAL)
        assert len(run.host_data["peers"]) == 1

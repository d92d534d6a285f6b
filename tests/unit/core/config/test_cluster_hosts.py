"""A host of several nodes: what it takes from its first node, and what cannot train together."""

from pathlib import Path

import pytest

from orchestrator.core.config.inventory import HostSpec, load_inventory
from orchestrator.core.errors import UserError
from orchestrator.core.machines import machine_type, of_one
from orchestrator.core.planning.many_machines.lost_nodes import order, others
from orchestrator.core.ports import Offer
from orchestrator.fleet.offers import offer_for

A = '[hosts.a]\nmachine = "2x3090"\naddress = "192.168.1.20"\nuser = "me"\nfolder = "/big"\n'
B = '[hosts.b]\nmachine = "2x3090"\nprivate_address = "10.0.0.3"\n'


def pair(tmp_path: Path, text: str) -> HostSpec:
    path = tmp_path / "inventory.toml"
    path.write_text(A + B + text)
    return load_inventory(path, tmp_path).host("pair")


def test_it_is_its_first_node_and_knows_the_others(tmp_path: Path) -> None:
    host = pair(tmp_path, '[hosts.pair]\nnodes = ["a", "b"]\nmax_hours = 3\n')
    assert (host.name, host.machine, host.folder, host.max_hours) == ("pair", "2x2x3090", "/big", 3)
    assert host.reach() == load_inventory(tmp_path / "inventory.toml", tmp_path).host("a").reach()
    assert [(each.name, each.private_address, each.reach().host) for each in host.other_nodes] == [
        ("b", "10.0.0.3", "b")
    ]
    assert HostSpec.from_resolved(host.resolved()) == host


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('nodes = ["a"]', "needs two different hosts or more"),
        ('nodes = ["a", "a"]', "needs two different hosts or more"),
        ('nodes = ["a", "z"]', "unknown host 'z'"),
        ('nodes = ["a", "c"]', "a is 2x3090, c is 1x3090"),
        ('nodes = ["a", "cloud"]', "cloud is not a single machine of provider ssh"),
        ('nodes = ["a", "b"]\nmachine = "2x3090"', "`machine` and `address` are those of its nodes"),
        ('nodes = ["a", "b"]\npeers = []', "peers: gptctl sets it"),
        ("nodes = 2", "only machines of a cloud are counted"),
        ('nodes = ["a", "b"]\non_node_lost = "replace"', "provider ssh sells no other machine"),
        ('nodes = ["a", "b"]\non_node_lost = "wait"', "on_node_lost"),
        ('machine = "2x3090"\non_node_lost = "continue"', "only a host with `nodes` can lose one"),
        ('nodes = 1\nprovider = "lambda"\nmachine = "2x3090"', "must be between 2 and 32, got 1"),
        ('nodes = 33\nprovider = "lambda"\nmachine = "2x3090"', "must be between 2 and 32, got 33"),
        ('nodes = true\nprovider = "lambda"\nmachine = "2x3090"', "nodes"),
        ('nodes = 2\nprovider = "lambda"', "needs `machine`"),
        ('nodes = 2\nprovider = "lambda"\nmachine = "2xNONE"', "unknown machine type"),
        ('nodes = 2\nprovider = "lambda"\nmachine = "2x3090"\nprivate_address = "10.0.0.9"', "gives each machine its"),
    ],
)
def test_nodes_that_cannot_train_together_are_refused_by_name(tmp_path: Path, table: str, said: str) -> None:
    more = '[hosts.c]\nmachine = "1x3090"\n[hosts.cloud]\nprovider = "lambda"\nmachine = "2x3090"\n'
    with pytest.raises(UserError) as caught:
        pair(tmp_path, f"{more}[hosts.pair]\n{table}\n")
    assert said in caught.value.message


def test_machines_of_a_cloud_are_counted(tmp_path: Path) -> None:
    table = 'provider = "ec2"\nmachine = "8xA100-40GB"\nmachines = ["8xH100"]\nnodes = 3\nmax_cost_usd = 90\n'
    host = pair(tmp_path, f"[hosts.pair]\n{table}")
    assert (host.machine, host.machines, host.nodes) == (
        "3x8xA100-40GB", ("3x8xH100",), ("pair-0", "pair-1", "pair-2"),
    )  # fmt: skip
    assert [(each.name, each.machine, each.nodes) for each in host.other_nodes] == [
        ("pair-1", "8xA100-40GB", ()), ("pair-2", "8xA100-40GB", ()),
    ]  # fmt: skip
    assert (host.one.machine, host.one.machines, host.one.nodes, host.one.name) == (
        "8xA100-40GB",
        ("8xH100",),
        (),
        "pair",
    )
    assert HostSpec.from_resolved(host.resolved()) == host


def test_the_price_of_several_is_that_of_all() -> None:
    machine = machine_type("2x8xH100")
    offers = [Offer("lambda", "8xH100", 30.0, region="b"), Offer("lambda", "1xH100", 4.0)]
    host = HostSpec(name="two", provider="lambda", machine="2x8xH100")
    found = offer_for(host, machine, offers)
    assert found is not None and (found.machine, found.price_per_hour_usd, found.region) == ("2x8xH100", 60.0, "b")
    assert of_one(found) == offers[0]


def test_a_machine_type_of_several_nodes_has_the_cards_of_all() -> None:
    machine = machine_type("2x8xH100")
    assert (machine.gpus, machine.ranks, machine.nodes, machine.node) == (16, 16, 2, machine_type("8xH100"))
    assert machine_type("3x2xCPU").ranks == 6
    assert machine_type("2x8xA100-40GB-simulated").ranks == 2 * machine_type("8xA100-40GB-simulated").ranks
    assert machine_type("8xH100").node is machine_type("8xH100")


@pytest.mark.parametrize("name", ["1x8xH100", "99x8xH100", "2x2x8xH100", "2x8xNONE"])
def test_other_counts_of_nodes_are_unknown(name: str) -> None:
    with pytest.raises(UserError, match="unknown machine type"):
        machine_type(name)


def test_without_its_head_the_next_node_is_how_it_is_reached(tmp_path: Path) -> None:
    extra = '[hosts.c]\nmachine = "2x3090"\nport = 2222\n'
    host = pair(tmp_path, extra + '[hosts.pair]\nnodes = ["a", "b", "c"]\nmax_hours = 3\non_node_lost = "continue"\n')
    left = others(host, order(3, {0}, replaced=False))
    assert (left.name, left.machine, left.nodes, left.on_node_lost) == ("pair", "2x2x3090", ("b", "c"), "continue")
    assert (left.address, left.user, left.folder, left.private_address) == ("b", None, "~/.gptctl", "10.0.0.3")
    assert (left.max_hours, [each.port for each in left.other_nodes]) == (3, [2222])
    last = others(left, order(2, {0}, replaced=False))
    assert (last.machine, last.nodes, last.port, last.on_node_lost) == ("2x3090", (), 2222, "end")


def test_without_another_node_the_head_stays_and_they_close_up(tmp_path: Path) -> None:
    host = pair(tmp_path, '[hosts.pair]\nnodes = ["a", "b"]\non_node_lost = "continue"\n')
    left = others(host, order(2, {1}, replaced=False))
    assert (left.machine, left.address, left.user, left.peers) == ("2x3090", "192.168.1.20", "me", ())


def test_a_replaced_node_keeps_its_place_and_its_name(tmp_path: Path) -> None:
    table = 'provider = "lambda"\nmachine = "8xA100-40GB"\nnodes = 3\non_node_lost = "replace"\n'
    host = pair(tmp_path, f"[hosts.pair]\n{table}")
    assert others(host, order(3, {1}, replaced=True)) == host
    other_head = others(host, order(3, {0}, replaced=True))
    assert other_head.nodes == ("pair-1", "pair-0", "pair-2")
    assert [each.name for each in other_head.other_nodes] == ["pair-0", "pair-2"]

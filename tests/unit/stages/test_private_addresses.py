"""At which address nodes reach each other: what the inventory says, else a network that they share."""

from typing import cast

import pytest

from orchestrator.agent.contract.facts import Facts
from orchestrator.core.config.inventory import HostSpec
from orchestrator.core.errors import MachineUnfit
from orchestrator.stages.nodes.meet import private_addresses


def nodes(*found: dict[str, str]) -> list[Facts]:
    """With a prefix of 24 bits where none is given."""
    whole = [{name: each if "/" in each else f"{each}/24" for name, each in own.items()} for own in found]
    return [cast(Facts, {"addresses": each}) for each in whole]


def hosts(*private: str | None, address: str | None = None) -> list[HostSpec]:
    return [
        HostSpec(name=f"n{number}", machine="1xCPU", private_address=each, address=address)
        for number, each in enumerate(private)
    ]


def test_a_network_that_all_share_is_taken_before_what_ssh_reaches() -> None:
    docker = {"docker0": "172.17.0.1"}
    facts = nodes({**docker, "eth0": "8.8.4.4", "eth1": "10.1.1.2"}, {**docker, "eth0": "9.9.9.9", "eth1": "10.1.1.3"})
    assert private_addresses(hosts(None, None, address="8.8.4.4"), facts) == ("10.1.1.2", "10.1.1.3")


def test_what_the_inventory_says_counts() -> None:
    facts = nodes({"eth0": "192.168.0.2"}, {"eth0": "192.168.0.3", "ib0": "10.9.0.3"})
    assert private_addresses(hosts(None, "10.9.0.3"), facts) == ("192.168.0.2", "10.9.0.3")


def test_without_a_shared_network_the_private_address_is_taken() -> None:
    facts = nodes({"eth0": "8.8.4.4", "eth1": "10.1.1.2"}, {"eth0": "10.2.2.2"})
    assert private_addresses(hosts(None, None), facts) == ("10.1.1.2", "10.2.2.2")


def test_a_node_without_an_address_is_named() -> None:
    with pytest.raises(MachineUnfit, match="n1: no interface there has an IPv4 address"):
        private_addresses(hosts(None, None), nodes({"eth0": "10.1.1.2"}, {}))


def test_networks_are_what_the_interfaces_say() -> None:
    facts = nodes(
        {"eth0": "10.197.1.2/30", "eth1": "10.199.0.2/20"}, {"eth0": "10.197.1.6/30", "eth1": "10.199.3.3/20"}
    )
    assert private_addresses(hosts(None, None), facts) == ("10.199.0.2", "10.199.3.3")

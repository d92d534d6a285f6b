"""A network of their own for several hosts: a switch and an interface eth1 on each, so that they reach each other.

The hosts' other links lead here only, as SSH from a laptop does: what the nodes say to each other has to go over this
one. Needs root.

    with NamespaceHost(tmp_path, name="a") as a, NamespaceHost(tmp_path, name="b") as b, PrivateNetwork() as network:
        network.join(a), network.join(b)         # '10.199.17.2', '10.199.17.3'
        network.cut(b)                           # every packet is lost from now on, without a word
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from tests.support.machines.namespaces import SUPERNET, NamespaceHost

_numbers = itertools.count()


class PrivateNetwork:
    """One switch; a context manager."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.name = f"gb{os.getpid()}n{number}"[:15]
        self.prefix = f"10.199.{(os.getpid() * 17 + number) % 250}"
        self.links: dict[str, str] = {}

    def __enter__(self) -> Self:
        _ip("route", "replace", "unreachable", SUPERNET)
        _ip("link", "add", self.name, "type", "bridge")
        _ip("link", "set", self.name, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.links.values():
            subprocess.run(["ip", "link", "del", link], check=False, capture_output=True, timeout=120)
        _ip("link", "del", self.name)

    def join(self, host: NamespaceHost) -> str:
        """Gives the host an address in this network."""
        link = f"gp{os.getpid()}n{next(_numbers)}"[:15]
        address = f"{self.prefix}.{2 + len(self.links)}"
        self.links[host.name] = link
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth1", "netns", host.netns)
        _ip("link", "set", link, "master", self.name, "up")
        inside = ["ip", "netns", "exec", host.netns, "ip"]
        for words in (["addr", "add", f"{address}/24", "dev", "eth1"], ["link", "set", "eth1", "up"]):
            subprocess.run([*inside, *words], check=True, timeout=120)
        return address

    def cut(self, host: NamespaceHost) -> None:
        """Unplugs the host here; its link to us stays."""
        _ip("link", "set", self.links[host.name], "down")


class Pair(NamedTuple):
    """Hosts na and nb of one network, in an inventory that has them together as `pair`, and na again as `alone`, with
    as many ranks as both."""

    hosts: list[NamespaceHost]
    network: PrivateNetwork
    inventory: str


@contextmanager
def two_hosts(folder: Path, extra: Mapping[str, str] | None = None) -> Iterator[Pair]:
    """extra: lines for the table of a host, by its name."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(NamespaceHost(folder / "machines", name=name)) for name in ("na", "nb")]
        network = stack.enter_context(PrivateNetwork())
        entries = []
        for host in hosts:
            network.join(host)
            lines = f'python = "{sys.executable}"\n{(extra or {}).get(host.name, "")}'
            entries.append(host.inventory_entry(machine="1xCPU", extra=lines))
        alone = entries[0].replace("[hosts.na]", "[hosts.alone]").replace("1xCPU", "2xCPU")
        together = '[hosts.pair]\nnodes = ["na", "nb"]\nprice_per_hour_usd = 0.5\n'
        path = folder / "inventory.toml"
        path.write_text("\n".join([*entries, alone, together]))
        yield Pair(hosts, network, str(path))


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, timeout=120)

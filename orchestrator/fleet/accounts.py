"""The cloud accounts behind an inventory. Several host entries may buy with one key; each account is asked once.

Example: `[account.provider.machines() for account in accounts_of(inventory)]`
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator import providers
from orchestrator.core.config.inventory import HostSpec, Inventory
from orchestrator.core.machines import MachineType, all_machine_types, machine_type
from orchestrator.core.ports import Provider


@dataclass(frozen=True)
class Account:
    """Where machines are bought: one key of one provider, and the hosts of the inventory that use it."""

    name: str
    provider: Provider
    hosts: tuple[HostSpec, ...]


def accounts_of(inventory: Inventory, environment: Mapping[str, str] | None = None) -> list[Account]:
    """Every paid account of the inventory once, and those whose key is in the environment without a host entry.

    Raises UserError for a provider that does not exist: a watcher must not overlook an account.
    """
    hosts = [host for host in inventory.hosts.values() if host.paid]
    for name in _with_a_key(os.environ if environment is None else environment):
        if name not in {host.provider for host in hosts}:
            hosts.append(HostSpec(name=name, provider=name, machine=all_machine_types()[0].name))
    return accounts_behind(hosts)


def accounts_behind(hosts: Iterable[HostSpec]) -> list[Account]:
    """The accounts that these paid hosts use, each once."""
    users: dict[tuple[str, str | None], list[HostSpec]] = {}
    for host in hosts:
        if host.paid:
            users.setdefault((host.provider, host.endpoint), []).append(host)
    return [_account(name, endpoint, tuple(found)) for (name, endpoint), found in users.items()]


def _with_a_key(environment: Mapping[str, str]) -> list[str]:
    """Providers whose API key is set: their machines are looked for even when the inventory was lost."""
    variables = {name: getattr(providers.load(name), "KEY_VARIABLE", None) for name in providers.known()}
    return [name for name, variable in variables.items() if variable and environment.get(variable)]


def _account(name: str, endpoint: str | None, hosts: tuple[HostSpec, ...]) -> Account:
    module = providers.load(name)
    joined = getattr(module, "everywhere", None)
    everywhere = joined(hosts) if joined else hosts[0].model_copy(update={"regions": ()})
    provider = module.provider(everywhere.one, _machine_of(hosts[0]).node)
    return Account(f"{name} at {endpoint}" if endpoint else name, provider, hosts)


def _machine_of(host: HostSpec) -> MachineType:
    return machine_type(host.machine or all_machine_types()[0].name)

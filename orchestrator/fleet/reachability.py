"""Which hosts of the inventory answer now: a command over SSH for machines that are on, a list for rented ones.

All at once, within a few seconds; silence says nothing about a machine's life.

Example: `look_at(hosts, home).states` -> {"home-3090": "up", "lambda-8xa100": "1 rented", "rig": "unknown: ..."}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator import providers
from orchestrator.core.config.inventory import LOCAL, HostSpec
from orchestrator.core.errors import GptctlError, HostKeyUnknown
from orchestrator.core.fleet.orphans import ENDED
from orchestrator.core.parallel import answers_within
from orchestrator.fleet.accounts import Account, accounts_behind
from orchestrator.remote.shell.opened import open_shell

WITHIN_S = 3.0


@dataclass(frozen=True)
class Seen:
    """The state of every host in words, by its name, and one line per row of a list that could not be read."""

    states: dict[str, str]
    warnings: tuple[str, ...] = ()


def look_at(hosts: Iterable[HostSpec], home: Path, within_s: float = WITHIN_S) -> Seen:
    """Asks all of them at once."""
    all_hosts = list(hosts)
    silent = f"unknown: no answer in {within_s:.0f} s"
    states = {host.name: "here" if host.provider == LOCAL else silent for host in all_hosts}
    accounts = accounts_behind(host for host in all_hosts if host.provider in providers.known())
    calls: dict[str, Callable[[], dict[str, str]]] = {
        host.name: partial(_state_over_ssh, host, home, within_s) for host in all_hosts if host.provider == "ssh"
    }
    calls |= {f"account {each.name}": partial(_states_of_account, each) for each in accounts}
    for found in answers_within(within_s, calls).values():
        states |= found
    return Seen(states, tuple(line for each in accounts for line in each.provider.take_warnings()))


def _state_over_ssh(host: HostSpec, home: Path, within_s: float) -> dict[str, str]:
    try:
        shell = open_shell(home, host.reach(), deadline_s=within_s)
        try:
            shell.run(["true"], deadline_s=within_s)
        finally:
            shell.close()
    except HostKeyUnknown:
        return {host.name: "up, not trusted yet"}
    except GptctlError as error:
        return {host.name: f"unknown: {error.message}"}
    return {host.name: "up"}


def _states_of_account(account: Account) -> dict[str, str]:
    try:
        alive = [each for each in account.provider.machines() if each.status not in ENDED]
    except GptctlError as error:
        return {host.name: f"unknown: {error.message}" for host in account.hosts}
    counts = {host.name: sum(each.machine == host.machine for each in alive) for host in account.hosts}
    return {name: f"{count} rented" if count else "none rented" for name, count in counts.items()}

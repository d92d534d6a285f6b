"""Which hosts of the inventory answer now: a command over SSH for machines that are on, a list for rented ones.

All at once, within a few seconds; silence says nothing about a machine's life.

Example: `look_at(hosts, home)` -> {"home-3090": "up", "lambda-8xa100": "1 rented", "rig": "unknown: ..."}
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

from orchestrator import providers
from orchestrator.core.config.inventory import LOCAL, HostSpec
from orchestrator.core.errors import GptctlError, HostKeyUnknown
from orchestrator.core.fleet.orphans import ENDED
from orchestrator.fleet.accounts import Account, accounts_behind
from orchestrator.wiring import open_shell

WITHIN_S = 3.0


def look_at(hosts: Iterable[HostSpec], home: Path, within_s: float = WITHIN_S) -> dict[str, str]:
    """The state of every host in words, by its name."""
    all_hosts = list(hosts)
    silent = f"unknown: no answer in {within_s:.0f} s"
    states = {host.name: "here" if host.provider == LOCAL else silent for host in all_hosts}
    over_ssh = [host for host in all_hosts if host.provider == "ssh"]
    accounts = accounts_behind(host for host in all_hosts if host.provider in providers.known())
    threads = [
        *(threading.Thread(target=_over_ssh, args=(host, home, within_s, states), daemon=True) for host in over_ssh),
        *(threading.Thread(target=_rented, args=(account, states), daemon=True) for account in accounts),
    ]
    until = time.monotonic() + within_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(states)


def _over_ssh(host: HostSpec, home: Path, within_s: float, states: dict[str, str]) -> None:
    try:
        shell = open_shell(home, host.reach(), deadline_s=within_s)
        try:
            shell.run(["true"], deadline_s=within_s)
        finally:
            shell.close()
        states[host.name] = "up"
    except HostKeyUnknown:
        states[host.name] = "up, not trusted yet"
    except GptctlError as error:
        states[host.name] = f"unknown: {error.message}"


def _rented(account: Account, states: dict[str, str]) -> None:
    try:
        alive = [each for each in account.provider.machines() if each.status not in ENDED]
    except GptctlError as error:
        states.update({host.name: f"unknown: {error.message}" for host in account.hosts})
        return
    for host in account.hosts:
        count = sum(each.machine == host.machine for each in alive)
        states[host.name] = f"{count} rented" if count else "none rented"

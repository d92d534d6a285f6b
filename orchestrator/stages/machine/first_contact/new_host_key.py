"""A new host key for a rented machine, over the first verified session.

The key it was born with came in user data, which every process on the machine can read. The new one is made there and
never leaves it. Old and new are both pinned until the new one was seen, so that a crash at any point locks nobody out;
doing all of it again is fine.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from orchestrator.core.errors import RemoteError
from orchestrator.core.facts.rental_facts import RentalFactChanges
from orchestrator.core.ports import Address
from orchestrator.remote.shell import known_hosts
from orchestrator.remote.shell.known_hosts import HostKey
from orchestrator.stages.context import RunContext

SEEN_WITHIN_S = 20.0
LOOK_EVERY_S = 0.1


def rekey(context: RunContext) -> None:
    """Once per machine whose key was injected. Where the machine does not allow it, a warning says so."""
    rental = context.rental
    done = rental.facts.rekeyed == rental.instance_id
    if done or not context.provider.paid or context.host.host_key != "injected":
        return
    made = context.agent.host_key(install=False)
    if not made["changeable"]:
        return _stays(context, made["why"])
    new = HostKey(*made["public"].split()[:2])
    address = rental.address
    pins = context.home / "known_hosts"
    known_hosts.repin(pins, address.identity, [*known_hosts.pinned(pins, address.identity), new])
    installed = context.agent.host_key(install=True)
    address = replace(address, fingerprint=new.fingerprint)
    if not _shows(context, address, new):
        return _stays(context, installed.get("why", "sshd does not show the new key"))
    # The fingerprint must always be one of the pinned keys', so it changes while both are.
    facts: RentalFactChanges = {"host_key": new.fingerprint}
    context.update_rental(address=address, facts=facts)
    known_hosts.repin(pins, address.identity, [new])
    context.set_rental_facts(rekeyed=rental.instance_id)


def _stays(context: RunContext, why: str) -> None:
    context.emit("warning", f"{context.host.name} keeps the host key that its user data shows: {why}")


def _shows(context: RunContext, address: Address, key: HostKey) -> bool:
    """Whether a fresh connection gets to see exactly this key."""
    # Only now: a host without SSH needs no SSH library.
    from orchestrator.remote.shell import ssh_shell

    until = time.monotonic() + SEEN_WITHIN_S
    with tempfile.TemporaryDirectory(prefix="gptctl-") as folder:
        only = Path(folder) / "known_hosts"
        known_hosts.pin(only, address.identity, key)
        while time.monotonic() < until:
            try:
                ssh_shell.connect(address, known_hosts=only).close()
                return True
            except RemoteError:  # it reads its key again within moments
                time.sleep(LOOK_EVERY_S)
    return False
